// What a row of the explorer looks like: a prompt, and each model's answer to it. Texts are put in as text, never as
// markup; what may offend is not even in the page until it is asked for.
(function (explorer) {
  "use strict";
  var SHORT = 420, LONG = 4000;
  explorer.FLAGS = {
    empty: "empty", other_script: "other script", repeated: "repeats itself", refusal: "refusal", truncated: "cut off",
    quoting: "quotes the prompt", counter_narrative: "counter-narrative"
  };

  // make("p", {class: "x"}, "text", node …)
  var make = explorer.make = function (tag, attributes) {
    var node = document.createElement(tag);
    Object.keys(attributes || {}).forEach(function (name) { node.setAttribute(name, attributes[name]); });
    Array.prototype.slice.call(arguments, 2).forEach(function (child) {
      if (child !== null && child !== undefined) node.append(child);
    });
    return node;
  };
  var visible = explorer.visible = function (text) {
    return text.replace(/\r\n?/g, "\n").replace(/[\x00-\x08\x0b-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff]|[\ud800-\udfff]/gu, "\ufffd");
  };
  // A name within the page's own words: it must not turn around what comes after it. A text that stands alone may.
  var named = explorer.named = function (text) { return visible(text).replace(/[\u202a-\u202e\u2066-\u2069]/g, "\ufffd"); };
  explorer.areShown = function () { return document.documentElement.dataset.veils === "shown"; };

  function marked(text, terms) {
    var fragment = document.createDocumentFragment(), at = 0, found;
    var wanted = terms.filter(function (term) { return !term.not; }).map(function (term) {
      return term.text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&").replace(/'/g, "['’‘]").replace(/ /g, "\\s+");
    });
    if (wanted.length) {
      var pattern = new RegExp(wanted.sort(function (a, b) { return b.length - a.length; }).join("|"), "gi");
      while ((found = pattern.exec(text)) && found[0]) {
        fragment.append(visible(text.slice(at, found.index)), make("mark", {}, visible(found[0])));
        at = found.index + found[0].length;
      }
    }
    fragment.append(visible(text.slice(at)));
    return fragment;
  }

  // The part of a long text around the first match, or its beginning.
  function excerpt(text, terms, most) {
    if (text.length <= most) return text;
    var first = terms.filter(function (term) { return !term.not; }).map(function (term) { return explorer.fold(text).indexOf(term.text); })
      .filter(function (at) { return at >= 0; });
    var start = first.length ? Math.max(0, Math.min.apply(null, first) - 100) : 0;
    return (start ? "…" : "") + text.slice(start, start + most) + (start + most < text.length ? "…" : "");
  }

  function quote(text, terms, open) {
    if (!open) return make("blockquote", { dir: "auto" }, marked(excerpt(text, terms, SHORT), terms));
    if (text.length <= LONG) return make("blockquote", { dir: "auto" }, marked(text, terms));
    var whole = make("div", {}, make("blockquote", { dir: "auto" }, marked(text.slice(0, LONG) + "…", terms)));
    var more = make("button", { type: "button" }, "Show all " + text.length.toLocaleString("en") + " letters");
    more.addEventListener("click", function () { whole.replaceChildren(make("blockquote", { dir: "auto" }, marked(text, terms))); });
    whole.append(more);
    return whole;
  }

  // ``content`` makes what is shown. Behind a veil, it is called when the veil opens.
  function veiled(what, content) {
    if (explorer.areShown()) return content();
    var veil = make("details", { class: "veil" }, make("summary", {}, "Show " + what + " ", make("span", {}, "may offend")));
    function fill() { if (veil.open && !veil.dataset.filled) { veil.dataset.filled = "yes"; veil.append(content()); } }
    veil.addEventListener("toggle", fill);
    return veil;
  }
  function passage(text, hide, what, content) {
    if (text === null || text === undefined) return make("p", { class: "missing" }, "no answer recorded");
    if (!text.trim()) return make("p", { class: "missing" }, "empty " + what);
    return hide ? veiled(what, content) : content();
  }

  function chip(index, judge, value, isReward) {
    var bucket = explorer.bucket(index, value), scored = bucket !== "unscored";
    return make("span", { class: "chip " + bucket }, make("bdi", {}, named(judge)), isReward ? " (reward) " : " ",
      make("b", {}, scored ? value.toFixed(2) : "unscored"), scored ? " " + bucket : null);
  }

  // Words in colours: by drift, or by their share in what the answer rests on.
  function level(value) {
    var size = Math.abs(value);
    return size < 0.25 ? 0 : size < 1 ? 1 : size < 2 ? 2 : size < 4 ? 3 : 4;
  }
  function signed(value) { return (value < 0 ? "−" : "+") + Math.abs(value).toFixed(2); }
  function coloured(found, by) {
    var drift = by.indexOf("drift:") === 0 ? found.drift[by.slice(6)] : null;
    var quoted = make("blockquote", { dir: "auto", class: "ex-words" }), spoken = [];
    if (drift) {
      found.words.forEach(function (word, at) {
        var strength = level(drift[at]);
        quoted.append(make("span", strength ? { class: (drift[at] < 0 ? "down-" : "up-") + strength, title: "ln p " + signed(drift[at]) } : {}, visible(word)));
        spoken.push([named(word).trim(), drift[at]]);
      });
      spoken.sort(function (a, b) { return a[1] - b[1]; });
      var ends = spoken.slice(0, 3).filter(function (one) { return one[1] < -0.25; }).concat(
        spoken.slice(-3).reverse().filter(function (one) { return one[1] > 0.25; }));
      return make("div", {}, quoted, make("p", { class: "ex-facts", dir: "auto" }, ends.length
        ? "Moved most: " + ends.map(function (one) { return "“" + one[0] + "” " + signed(one[1]); }).join(", ") + "."
        : "No word moved by a quarter of a nat."));
    }
    var shown = found.context.map(function (word, at) { return [word, at < found.shares.length ? found.shares[at] : 0]; })
      .filter(function (one) { return one[0][1] !== "template"; });
    var most = Math.max.apply(null, shown.map(function (one) { return one[1]; }).concat(1e-9)), before = "";
    shown.forEach(function (one) {
      var kind = one[0][1];
      if (before === "prompt" && kind === "answer") quoted.append(make("b", {}, " → "));
      before = kind;
      quoted.append(make("span", { class: "shade-" + Math.round(9 * one[1] / most) + " of-" + kind, title: (100 * one[1]).toFixed(1) + " %" }, visible(one[0][0])));
      spoken.push([named(one[0][0]).trim(), one[1]]);
    });
    spoken.sort(function (a, b) { return b[1] - a[1]; });
    return make("div", {}, quoted, make("p", { class: "ex-facts", dir: "auto" }, "Rests most on: " +
      spoken.slice(0, 4).map(function (one) { return "“" + one[0] + "” " + (100 * one[1]).toFixed(1) + " %"; }).join(", ") + "."));
  }
  function canColour(found, by) {
    return found && (by === "attribution" ? found.context.length : by && found.drift[by.slice(6)]);
  }

  function isPromptHidden(index, prompt) {
    var toxicity = index.data.prompts.toxicity[prompt];
    return toxicity === null || toxicity >= index.data.rule.low;
  }
  function answer(index, state, found, terms, row, m, open) {
    var cell = row * index.models + m, model = index.data.models[m], text = model.text[row];
    var box = make("div", { class: "ex-answer" + (found.hits[cell] ? " hit" : ""), "data-model": model.label });
    box.append(make("h4", {}, make("bdi", {}, named(model.label))));
    if (!index.exists[cell]) { box.append(passage(null)); return box; }
    index.data.flags.forEach(function (flag) {
      if (explorer.has(index, cell, flag)) box.append(make("span", { class: "badge plain" }, explorer.FLAGS[flag]), " ");
    });
    var scores = make("div", { class: "scores" }), unscored = [];
    (open ? index.data.judges : index.data.judges.filter(function (name) { return name === state.judge; })).forEach(function (name) {
      var value = index.scores[name][cell];
      scores.append(chip(index, name, value, model.reward_of.indexOf(name) >= 0));
      if (value !== value) unscored.push([name, explorer.reason(index, name, cell)]);
    });
    box.append(scores);
    var facts = [], change = index.scores[state.judge] ? explorer.change(index, state.judge, cell) : NaN;
    if (change === change) facts.push(signed(change) + " from " + named(index.data.models[0].label));
    if (open) {
      if (model.similarity[row] !== null) facts.push("similarity with the prompt " + model.similarity[row].toFixed(2));
      if (model.perplexity[row] !== null) facts.push("perplexity " + model.perplexity[row].toFixed(1));
      facts.push(text.split(/\s+/).filter(Boolean).length.toLocaleString("en") + " words");
    }
    if (facts.length) box.append(make("p", { class: "ex-facts" }, facts.join("; ")));
    unscored.forEach(function (one) {
      box.append(make("p", { class: "ex-facts", dir: "auto" }, "Unscored" + (open ? " by " + named(one[0]) : "") + ": " + named(one[1])));
    });
    var words = index.words.get(cell), colour = open && canColour(words, state.words);
    // An answer rests on the prompt's words too, so these would be shown.
    var hide = explorer.mayOffend(index, cell) || (colour && state.words === "attribution" && isPromptHidden(index, index.prompt[row]));
    box.append(passage(text, hide, "answer", function () {
      return colour ? coloured(words, state.words) : quote(text, terms, open);
    }));
    return box;
  }

  // One row as a list item. Its button has the row's number in data-row and says whether it is open.
  explorer.row = function (index, state, found, row, open) {
    var data = index.data, prompt = index.prompt[row], terms = explorer.parse(state.q), toxicity = data.prompts.toxicity[prompt];
    var hide = isPromptHidden(index, prompt), history = data.prompts.before[prompt];
    var item = make("li", { class: "ex-row" + (open ? " open" : ""), id: "explorer-row-" + row, "data-row": row });
    var button = make("button", { type: "button", "aria-expanded": String(open), "aria-controls": "explorer-row-" + row },
      "Prompt " + (prompt + 1).toLocaleString("en") + (index.samples > 1 ? ", answer " + (data.rows.sample[row] + 1) : ""));
    var head = make("div", { class: "ex-head" }, make("h3", {}, button));
    if (toxicity !== null) {
      var bucket = explorer.bucket(index, toxicity);
      head.append(make("span", { class: "chip " + bucket }, "toxicity ", make("b", {}, toxicity.toFixed(2)), " " + bucket));
    }
    if (index.challenging.has(prompt)) head.append(make("span", { class: "badge plain" }, "challenging"));
    if (open) head.append(make("span", { class: "ex-facts" }, "id ", make("bdi", {}, named(data.prompts.id[prompt]))));
    var asked = make("div", { class: "ex-prompt" });
    if (history) {
      asked.append(open
        ? veiled("the " + history.length + (history.length === 1 ? " turn" : " turns") + " before", function () {
          return make.apply(null, ["div", {}].concat(history.map(function (turn) {
            return make("blockquote", { dir: "auto" }, make("b", {}, named(turn[0]) + " "), marked(turn[1], terms));
          })));
        })
        : make("p", { class: "ex-facts" }, history.length + (history.length === 1 ? " turn" : " turns") + " before"));
    }
    asked.append(passage(data.prompts.text[prompt], hide, "prompt", function () { return quote(data.prompts.text[prompt], terms, open); }));
    var answers = make("div", { class: "ex-answers" });
    data.models.forEach(function (_, m) { answers.append(answer(index, state, found, terms, row, m, open)); });
    item.append(head, asked, answers);
    return item;
  };
})(RewardLMExplorer);
