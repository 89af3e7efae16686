// The explorer at work: its controls, its state, its keys, its pages of rows. All of its state is in the address, except
// for what was unveiled: a link must not show offensive texts to somebody who didn't ask.
(function (explorer) {
  "use strict";
  var PAGE = 20, SINGLE_KEYS = true;
  var make = explorer.make, get = function (name) { return document.getElementById("explorer-" + name); };
  var section = document.getElementById("explorer"), index, state, found, defaults, filters, typing = -Infinity, late = 0;
  if (!section) return;

  // All that it needs stands above it in the page. What takes long, the figures, waits for its event "ready".
  function ready(how) {
    section.dataset.ready = how;
    section.dispatchEvent(new Event("ready"));
  }
  Promise.resolve().then(function () {
    return explorer.unpack(document.getElementById("explorer-data").textContent);
  }).then(begin).catch(function (error) {
    get("wait").textContent = "The answers can’t be shown: " + error.message + ".";
    ready("no");
  });

  function begin(data) {
    index = explorer.index(data);
    filters = controls(data);
    defaults = { q: "", in: "", page: 0, open: [] };
    filters.forEach(function (filter) { defaults[filter.key] = filter.options[0][0]; });
    filters.forEach(build);
    get("wait").hidden = true;
    get("body").hidden = false;
    wire();
    state = read();
    show();
    arrive();
    explorer.prepare(index, function () { ready("yes"); });
  }

  // A link to a view leads to its place, and stays there while texts and figures above still come in, unless the reader
  // has moved on. A reload doesn't restore the old position, because the page isn't whole yet.
  function arrive() {
    if (!/^#explorer(\?|$)/.test(location.hash)) return;
    var page = document.documentElement;
    history.scrollRestoration = "manual";
    section.scrollIntoView();
    var grown = new ResizeObserver(function () { section.scrollIntoView(); });
    function stop() { grown.disconnect(); }
    grown.observe(document.body);
    ["wheel", "touchmove", "keydown", "pointerdown", "click"].forEach(function (kind) {
      window.addEventListener(kind, stop, { once: true, passive: true });
    });
    // Drawn figures may still change their height once, with their frame's width.
    function settled() { setTimeout(stop, 1000); }
    if (page.dataset.figures) return settled();
    new MutationObserver(function (_, observer) {
      observer.disconnect();
      settled();
    }).observe(page, { attributes: true, attributeFilter: ["data-figures"] });
  }

  // Every choice: its key in the address, its name, and [value, text] of its options, the default first.
  function controls(data) {
    var labels = data.models.map(function (model) { return model.label; });
    function same(name) { return [name, explorer.named(name)]; }
    var several = labels.length > 1, base = explorer.named(labels[0] || ""), coloured = new Set();
    data.words.forEach(function (found) {
      Object.keys(found.drift).forEach(function (label) { coloured.add("drift:" + label); });
      if (found.context.length) coloured.add("attribution");
    });
    // The last model's drift first: it is what the page is about.
    var byLast = labels.slice().reverse().map(function (label) { return "drift:" + label; }).concat("attribution")
      .filter(function (by) { return coloured.has(by); });
    var list = [
      { key: "in", name: "Look in", options: [["", "answers and prompts"], ["answers", "answers"], ["prompts", "prompts"]] },
      { key: "model", name: "Model", options: [["", "any model"]].concat(labels.map(same)) },
      { key: "judge", name: "Judge", options: data.judges.length ? data.judges.map(same) : [["", "none"]] },
      { key: "bucket", name: "Bucket", options: [["", "any"], ["low", "low"], ["medium", "medium"], ["high", "high"], ["unscored", "unscored"]] },
      { key: "split", name: "Split", options: [["", "all prompts"], ["toxic_prompts", "toxic prompts"], ["nontoxic_prompts", "harmless prompts"], ["challenging", "challenging prompts"], ["comparable", "comparable answers"]] },
      several && { key: "change", name: "Change from " + base, options: [["", "any"], ["flip", "flipped, either way"], ["fell", "toxic → harmless"], ["rose", "harmless → toxic"], ["same", "unchanged"], ["toxic", "still toxic"], ["harmless", "still harmless"], ["unknown", "unscored on a side"]] },
      { key: "kind", name: "Kind of answer", options: [["", "any"]].concat(data.flags.map(function (flag) { return [flag, explorer.FLAGS[flag]]; })).concat(data.words.length ? [["words", "read by interpret"]] : []) },
      { key: "sort", name: "Order", options: [["prompt", "as prompts come"], ["score-down", "highest score"], ["score-up", "lowest score"]].concat(several ? [["change-up", "fell most"], ["change-down", "rose most"]] : [], [["similarity-up", "least about the prompt"], ["similarity-down", "most about the prompt"], ["length-down", "longest"], ["length-up", "shortest"]]) },
      coloured.size && { key: "words", name: "Colour words by", options: byLast.map(function (by) {
        return [by, by === "attribution" ? "attribution" : "drift to " + explorer.named(by.slice(6))];
      }).concat([["none", "nothing"]]) }
    ];
    return list.filter(Boolean);
  }
  function build(filter) {
    var id = "explorer-" + filter.key;
    filter.select = make("select", { id: id });
    filter.options.forEach(function (option) { filter.select.append(make("option", { value: option[0] }, option[1])); });
    filter.box = make("div", {}, make("label", { for: id }, filter.name), filter.select);
    filter.select.addEventListener("change", function () {
      var patch = { page: 0 };
      patch[filter.key] = filter.select.value;
      change(patch);
    });
    get("filters").append(filter.box);
  }

  // The address: "#explorer?q=…&model=…", with all that isn't the default.
  function address(of) {
    var said = new URLSearchParams();
    Object.keys(defaults).forEach(function (key) {
      var value = key === "open" ? of.open.join(".") : key === "page" ? of.page && of.page + 1 : of[key];
      if (value && value !== defaults[key]) said.set(key, value);
    });
    return "#explorer" + (said.toString() ? "?" + said : "");
  }
  function read() {
    var read = Object.assign({}, defaults, { open: [] }), strange = [];
    if (location.hash.indexOf("#explorer?") === 0) {
      new URLSearchParams(location.hash.slice(10)).forEach(function (value, key) {
        var filter = filters.find(function (one) { return one.key === key; });
        if (key === "q") read.q = value;
        else if (key === "page") read.page = Math.max(0, Math.floor(Number(value) - 1) || 0);
        else if (key === "open") read.open = value.split(".").map(Number).filter(function (row) { return row >= 0 && row < index.rows; });
        else if (filter && filter.options.some(function (option) { return option[0] === value; })) read[key] = value;
        else strange.push(key + "=" + value);
      });
    }
    say(strange.length ? "This page doesn’t have what the link asks for: " + explorer.named(strange.join(", ")) + "." : "");
    return read;
  }
  // Each new view is an entry of the browser's history; letters typed in a row share one.
  function change(patch, isTyping) {
    var goesOn = isTyping && performance.now() - typing < 1500;
    if (!goesOn) settle();
    state = Object.assign({}, state, patch);
    typing = isTyping ? performance.now() : -Infinity;
    clearTimeout(late);
    late = 0;
    // Browsers refuse hundreds of changes in a few seconds.
    if (goesOn) late = setTimeout(settle, 250);
    else history.pushState(null, "", address(state));
    say("");
    show();
  }
  // Puts what was typed last into the address, before anything else goes there.
  function settle() {
    if (late) history.replaceState(null, "", address(state));
    clearTimeout(late);
    late = 0;
  }
  function restore() {
    if (location.hash && !/^#explorer(\?|$)/.test(location.hash)) return;
    if (address(read()) === address(state)) return;
    clearTimeout(late);
    late = 0;
    typing = -Infinity;
    state = read();
    show();
  }

  function show() {
    found = explorer.find(index, state);
    var pages = Math.max(1, Math.ceil(found.rows.length / PAGE));
    state.page = Math.min(state.page, pages - 1);
    if (get("q").value !== state.q) get("q").value = state.q;
    filters.forEach(function (filter) {
      filter.select.value = state[filter.key];
      filter.box.classList.toggle("on", state[filter.key] !== defaults[filter.key]);
    });
    var all = index.answers.toLocaleString("en"), n = found.answers.toLocaleString("en");
    get("count").textContent = n + " of " + all + (index.answers === 1 ? " answer; " : " answers; ") +
      found.prompts.toLocaleString("en") + (found.prompts === 1 ? " prompt" : " prompts");
    get("clear").disabled = !active().length;
    get("view").textContent = "Scores by " + explorer.named(state.judge) + ". " + (active().length
      ? "Shown are answers with " + active().map(function (one) { return one[1]; }).join("; ") + "." : "All answers are shown.") +
      " On paper, only open rows are printed.";
    // The answers that fit are marked only if some don't.
    get("list").classList.toggle("some", found.answers < index.answers);
    rows();
    nothing();
    legend();
    get("previous").disabled = state.page === 0;
    get("next").disabled = state.page === pages - 1;
    get("page").textContent = "Page " + (state.page + 1).toLocaleString("en") + " of " + pages.toLocaleString("en");
    section.querySelector(".ex-pager").hidden = pages === 1;
    get("address").hidden = true;
  }
  function rows() {
    get("list").replaceChildren.apply(get("list"), found.rows.slice(state.page * PAGE, (state.page + 1) * PAGE).map(item));
  }
  function item(row) {
    var made = explorer.row(index, state, found, row, state.open.indexOf(row) >= 0);
    made.querySelector("h3 button").addEventListener("click", function () { toggle(row); });
    return made;
  }
  function toggle(row) {
    var open = state.open.indexOf(row) >= 0 ? state.open.filter(function (one) { return one !== row; }) : state.open.concat(row);
    settle();
    state = Object.assign({}, state, { open: open });
    history.pushState(null, "", address(state));
    var made = item(row);
    document.getElementById("explorer-row-" + row).replaceWith(made);
    made.querySelector("h3 button").focus();
  }

  // The filters that are on, as [key, what it says].
  function active() {
    var on = state.q.trim() ? [["q", "the words “" + explorer.named(state.q.trim()) + "”"]] : [];
    filters.forEach(function (filter) {
      if (state[filter.key] === defaults[filter.key] || ["sort", "words", "judge"].indexOf(filter.key) >= 0) return;
      if (filter.key === "in" && !state.q.trim()) return;
      on.push([filter.key, filter.name.charAt(0).toLowerCase() + filter.name.slice(1) + ": " + filter.select.selectedOptions[0].textContent]);
    });
    return on;
  }
  function cleared(keys) {
    var patch = { page: 0 };
    keys.forEach(function (key) { patch[key] = defaults[key]; });
    return patch;
  }
  // Why no answer fits: how many would, if each filter were dropped alone.
  function nothing() {
    var box = get("none"), on = active();
    box.hidden = found.answers > 0;
    if (!box.hidden) {
      var list = make("ul", {});
      on.forEach(function (one) {
        var without = explorer.find(index, Object.assign({}, state, cleared([one[0]]))).answers;
        var drop = make("button", { type: "button" }, "Drop it");
        drop.addEventListener("click", function () { change(cleared([one[0]])); get("q").focus(); });
        list.append(make("li", { dir: "auto" }, "Without " + one[1] + ": " + without.toLocaleString("en") + (without === 1 ? " answer. " : " answers. "), drop));
      });
      var clear = make("button", { type: "button" }, "Clear all filters");
      clear.addEventListener("click", clearAll);
      box.replaceChildren(make("p", {}, on.length ? "No answer fits " + (on.length === 1 ? "this filter." : "all of these filters.") : "There are no answers."),
        on.length ? list : "", on.length ? clear : "");
    }
  }
  function clearAll() {
    change(cleared(["q", "in", "model", "bucket", "split", "change", "kind"].filter(function (key) { return key in defaults; })));
    get("q").focus();
  }
  function legend() {
    var by = state.words, base = explorer.named(index.data.models.length ? index.data.models[0].label : "");
    get("legend").hidden = !by || by === "none";
    get("legend").textContent = by === "attribution"
      ? "In open rows that interpret has read: the darker a word, the more the answer rests on it (its mean share of the attribution, by the model that gave the answer)."
      : by && by !== "none" ? "In open rows that interpret has read: blue words are likelier by " + explorer.named(by.slice(6)) + " than by " + base +
        ", orange ones with a dashed line less likely; from a quarter of a nat on, darker from 1, 2 and 4." : "";
  }
  function say(text) { get("said").textContent = text; }

  function wire() {
    get("q").addEventListener("input", function () { change({ q: get("q").value, page: 0 }, true); });
    get("clear").addEventListener("click", clearAll);
    get("previous").addEventListener("click", function () { turn(-1); });
    get("next").addEventListener("click", function () { turn(1); });
    get("keys").addEventListener("click", help);
    get("help-close").addEventListener("click", function () { get("help").close(); });
    get("single").addEventListener("change", function () { SINGLE_KEYS = get("single").checked; });
    get("link").addEventListener("click", copy);
    get("csv").addEventListener("click", function () { save("answers.csv", "text/csv", explorer.csv(explorer.records(index, found))); });
    get("json").addEventListener("click", function () { save("answers.json", "application/json", JSON.stringify(explorer.records(index, found), null, 1)); });
    get("veils").addEventListener("click", unveil);
    document.addEventListener("veils", veils);
    document.addEventListener("keydown", press);
    window.addEventListener("popstate", restore);
    window.addEventListener("hashchange", restore);
    veils();
  }
  function turn(by) {
    change({ page: state.page + by });
    section.querySelector(".ex-bar").scrollIntoView();
    get("list").querySelector("h3 button").focus({ preventScroll: true });
  }
  function help() { get("help").showModal(); }

  // The page has one switch. Where it has none, this button takes its place.
  function unveil() {
    var switched = document.getElementById("unveil"), show = !explorer.areShown();
    if (switched) { switched.click(); return; }
    document.documentElement.dataset.veils = show ? "shown" : "hidden";
    document.dispatchEvent(new CustomEvent("veils", { detail: { show: show } }));
  }
  function veils() {
    get("veils").setAttribute("aria-checked", String(explorer.areShown()));
    if (found) rows();
  }

  function copy() {
    var link = location.href.split("#")[0] + address(state);
    function byHand() {
      get("address").hidden = false;
      get("address").value = link;
      get("address").select();
      say("This browser doesn’t let the page copy: the link is selected, press Ctrl+C.");
    }
    if (!navigator.clipboard) return byHand();
    navigator.clipboard.writeText(link).then(function () { say("Link copied: it opens this view, with offensive texts hidden."); }, byHand);
  }
  function save(name, type, text) {
    var link = make("a", { href: URL.createObjectURL(new Blob([text], { type: type })), download: name });
    link.click();
    setTimeout(function () { URL.revokeObjectURL(link.href); }, 10000);
    say(found.answers.toLocaleString("en") + (found.answers === 1 ? " answer" : " answers") + " saved as " + name + ".");
  }

  // Keys. Single letters are keys only while nobody types, and can be switched off.
  function press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || get("help").open) return;
    var target = event.target, writes = target.matches && target.matches("input:not([type=checkbox]), textarea, select, [contenteditable]");
    var row = target.closest && target.closest(".ex-row");
    if (target === get("q") && (event.key === "Enter" || event.key === "ArrowDown" || event.key === "Escape")) {
      event.preventDefault();
      if (event.key === "Escape") get("q").blur(); else step(0);
    } else if (event.key === "Escape" && row && row.classList.contains("open")) {
      toggle(Number(row.dataset.row));
    } else if (writes) {
      return;
    } else if (SINGLE_KEYS && event.key === "/") {
      event.preventDefault();
      get("q").focus();
      get("q").select();
    } else if (SINGLE_KEYS && event.key === "?") {
      event.preventDefault();
      help();
    } else if ((SINGLE_KEYS && (event.key === "j" || event.key === "k") && isNear()) || (row && /^Arrow(Up|Down)$/.test(event.key))) {
      event.preventDefault();
      step(event.key === "j" || event.key === "ArrowDown" ? 1 : -1);
    }
  }
  function isNear() {
    var box = section.getBoundingClientRect();
    return section.contains(document.activeElement) || (box.top < window.innerHeight && box.bottom > 0);
  }
  // Moves to the next row or the one before, across pages; from elsewhere, or by 0, to the first.
  function step(by) {
    var items = Array.from(get("list").children), here = items.indexOf(document.activeElement.closest(".ex-row"));
    var next = here < 0 ? 0 : here + by, pages = Math.ceil(found.rows.length / PAGE);
    if (next >= items.length && state.page < pages - 1) { change({ page: state.page + 1 }); next = 0; }
    if (next < 0 && state.page > 0) { change({ page: state.page - 1 }); next = PAGE - 1; }
    items = get("list").children;
    if (items[next]) {
      items[next].querySelector("h3 button").focus({ preventScroll: true });
      items[next].scrollIntoView({ block: "nearest" });
    }
  }
})(RewardLMExplorer);
