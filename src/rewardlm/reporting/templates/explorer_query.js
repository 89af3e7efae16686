// The explorer's data and search: unpacks the page's columns, searches, filters and sorts them. Nothing here touches
// what is shown. A cell is a row's answer by one model: row * models + model.
var RewardLMExplorer = {};
(function (explorer) {
  "use strict";

  // JSON, deflated, in base64. Returns a promise, which is rejected if the browser can't inflate.
  explorer.unpack = function (packed) {
    if (typeof DecompressionStream === "undefined") {
      return Promise.reject(new Error("this browser can’t inflate data: Chrome 80, Firefox 113, Safari 16.4 or a later one can"));
    }
    var letters = atob(packed.trim());
    var bytes = new Uint8Array(letters.length);
    for (var at = 0; at < letters.length; at++) bytes[at] = letters.charCodeAt(at);
    var stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).text().then(JSON.parse);
  };

  // Makes what is typed and what is searched alike: lower case, plain apostrophes, single blanks.
  explorer.fold = function (text) {
    return text.toLowerCase().replace(/[’‘]/g, "'").replace(/\s+/g, " ");
  };

  function floats(cells, models, column) {
    var values = new Float64Array(cells).fill(NaN);
    models.forEach(function (model, m) {
      (column(model) || []).forEach(function (value, row) { if (value !== null) values[row * models.length + m] = value; });
    });
    return values;
  }

  explorer.index = function (data) {
    var models = data.models, M = models.length, N = data.rows.prompt.length, cells = N * M;
    var index = {
      data: data, models: M, rows: N, cells: cells, prompt: data.rows.prompt,
      exists: new Uint8Array(cells), flags: new Uint16Array(cells), size: new Int32Array(cells), answers: 0,
      // Without a prototype: a judge may have any name.
      scores: Object.create(null), words: new Map(), lower: new Array(cells), promptLower: new Array(data.prompts.text.length),
      similarity: floats(cells, models, function (model) { return model.similarity; }),
      challenging: new Set(data.prompts.challenging), samples: new Set(data.rows.sample).size
    };
    models.forEach(function (model, m) {
      for (var row = 0; row < N; row++) {
        var cell = row * M + m, text = model.text[row];
        index.flags[cell] = model.flags[row];
        if (text !== null) { index.exists[cell] = 1; index.size[cell] = text.length; index.answers++; }
      }
    });
    data.judges.forEach(function (name) {
      index.scores[name] = floats(cells, models, function (model) { return model.scores[name]; });
    });
    data.words.forEach(function (found) { index.words.set(found.row * M + found.model, found); });
    return index;
  };

  explorer.text = function (index, cell) {
    return index.data.models[cell % index.models].text[Math.floor(cell / index.models)];
  };
  // A judge may have a threshold of its own. "judge" is also who scored the prompts, or nobody.
  explorer.isToxic = function (index, value, judge) {
    var rule = index.data.rule, own = Object.prototype.hasOwnProperty.call(rule.thresholds, judge);
    var threshold = own ? rule.thresholds[judge] : rule.threshold;
    return rule.inclusive ? value >= threshold : value > threshold;
  };
  explorer.bucket = function (index, value) {
    if (value === null || value !== value) return "unscored";
    return value < index.data.rule.low ? "low" : value > index.data.rule.high ? "high" : "medium";
  };
  explorer.has = function (index, cell, flag) {
    return (index.flags[cell] >> index.data.flags.indexOf(flag)) & 1;
  };
  explorer.isUsable = function (index, cell) {
    return !["empty", "other_script", "repeated", "refusal"].some(function (flag) { return explorer.has(index, cell, flag); });
  };
  // The change of the score from the baseline's answer in the same row.
  // NaN where one of the two is unscored, and for the baseline itself.
  explorer.change = function (index, judge, cell) {
    var base = cell - cell % index.models;
    return cell === base ? NaN : index.scores[judge][cell] - index.scores[judge][base];
  };
  explorer.isPromptToxic = function (index, prompt) {
    var toxicity = index.data.prompts.toxicity[prompt];
    return toxicity === null ? null : explorer.isToxic(index, toxicity, index.data.rule.toxic_by);
  };
  // As in the examples: scored medium or high by anyone, or by nobody.
  explorer.mayOffend = function (index, cell) {
    var known = index.data.judges.map(function (name) { return index.scores[name][cell]; }).filter(function (v) { return v === v; });
    return !known.length || Math.max.apply(null, known) >= index.data.rule.low;
  };

  function lowered(index, cell) {
    if (index.lower[cell] === undefined) index.lower[cell] = explorer.fold(explorer.text(index, cell));
    return index.lower[cell];
  }
  function loweredPrompt(index, prompt) {
    if (index.promptLower[prompt] === undefined) {
      var before = index.data.prompts.before[prompt] || [];
      var turns = before.map(function (turn) { return turn[1]; }).concat(index.data.prompts.text[prompt]);
      index.promptLower[prompt] = explorer.fold(turns.join("\n"));
    }
    return index.promptLower[prompt];
  }
  // Folds all texts ahead of the first search. ``done`` is called at the end.
  explorer.prepare = function (index, done) {
    var cell = 0, prompt = 0;
    (function some() {
      var until = performance.now() + 12;
      while (performance.now() < until && (cell < index.cells || prompt < index.promptLower.length)) {
        for (var n = 0; n < 50 && cell < index.cells; n++, cell++) if (index.exists[cell]) lowered(index, cell);
        for (n = 0; n < 50 && prompt < index.promptLower.length; n++, prompt++) loweredPrompt(index, prompt);
      }
      if (cell < index.cells || prompt < index.promptLower.length) setTimeout(some, 0); else if (done) done();
    })();
  };

  // "a phrase", word, -word: [{text, not}].
  explorer.parse = function (query) {
    var terms = [], one, pattern = /(-?)(?:"([^"]*)"?|(\S+))/g;
    var plain = explorer.fold(query.replace(/[“”]/g, '"'));
    while ((one = pattern.exec(plain))) {
      var text = (one[2] === undefined ? one[3] : one[2]).trim();
      if (text && text !== "-") terms.push({ text: text, not: one[1] === "-" });
    }
    return terms;
  };

  function searcher(index, state) {
    var terms = explorer.parse(state.q);
    if (!terms.length) return function () { return true; };
    var prompts = state.in === "answers" ? null : terms.map(function (term) {
      return index.data.prompts.text.map(function (_, prompt) { return loweredPrompt(index, prompt).indexOf(term.text) >= 0; });
    });
    var answers = state.in !== "prompts";
    return function (cell, prompt) {
      for (var t = 0; t < terms.length; t++) {
        var found = (prompts && prompts[t][prompt]) || (answers && lowered(index, cell).indexOf(terms[t].text) >= 0);
        if (!found !== terms[t].not) return false;
      }
      return true;
    };
  }

  // Choices that stand for several ways in which a verdict changes.
  var TOGETHER = { same: ["toxic", "harmless"], flip: ["fell", "rose"] };

  // How the verdict changed from the baseline's answer to this one: fell, rose, toxic or harmless (both as before), or
  // unknown; "" for the baseline itself.
  explorer.way = function (index, judge, cell) {
    var base = cell - cell % index.models;
    if (cell === base) return "";
    var before = index.scores[judge][base], after = index.scores[judge][cell];
    if (before !== before || after !== after) return "unknown";
    var was = explorer.isToxic(index, before, judge), is = explorer.isToxic(index, after, judge);
    return was ? (is ? "toxic" : "fell") : is ? "rose" : "harmless";
  };

  // The answers that fit ``state``: hits by cell, their rows in order, and the numbers of answers and prompts.
  explorer.find = function (index, state) {
    var M = index.models, hits = new Uint8Array(index.cells), rows = [], prompts = new Set(), answers = 0;
    var fits = searcher(index, state), scores = index.scores[state.judge];
    var only = state.model === "" ? -1 : index.data.models.findIndex(function (model) { return model.label === state.model; });
    for (var row = 0; row < index.rows; row++) {
      var prompt = index.prompt[row], any = false, toxic;
      if (state.split === "toxic_prompts" || state.split === "nontoxic_prompts") {
        toxic = explorer.isPromptToxic(index, prompt);
        if (toxic !== (state.split === "toxic_prompts")) continue;
      }
      if (state.split === "challenging" && !index.challenging.has(prompt)) continue;
      for (var m = 0; m < M; m++) {
        var cell = row * M + m;
        if (!index.exists[cell] || (only >= 0 && m !== only)) continue;
        if (state.bucket && explorer.bucket(index, scores ? scores[cell] : NaN) !== state.bucket) continue;
        if (state.change) {
          var way = explorer.way(index, state.judge, cell);
          if (!(TOGETHER[state.change] || [state.change]).includes(way)) continue;
        }
        if (state.split === "comparable") {
          if (!explorer.isUsable(index, cell) || (state.change && !explorer.isUsable(index, row * M))) continue;
        }
        if (state.kind === "words" ? !index.words.has(cell) : state.kind && !explorer.has(index, cell, state.kind)) continue;
        if (!fits(cell, prompt)) continue;
        hits[cell] = 1;
        answers++;
        any = true;
      }
      if (any) { rows.push(row); prompts.add(prompt); }
    }
    return { hits: hits, rows: sorted(index, state, rows, hits), answers: answers, prompts: prompts.size };
  };

  // Sorts rows by their answers that fit: the most extreme one decides. Rows without a number come last.
  function sorted(index, state, rows, hits) {
    if (state.sort === "prompt") return rows;
    var value = {
      score: function (cell) { return index.scores[state.judge] ? index.scores[state.judge][cell] : NaN; },
      change: function (cell) { return index.scores[state.judge] ? explorer.change(index, state.judge, cell) : NaN; },
      similarity: function (cell) { return index.similarity[cell]; },
      length: function (cell) { return index.size[cell]; }
    }[state.sort.split("-")[0]];
    var sign = /-down$/.test(state.sort) ? -1 : 1;
    var keys = new Map();
    rows.forEach(function (row) {
      var best = Infinity;
      for (var m = 0; m < index.models; m++) {
        var cell = row * index.models + m, key = hits[cell] ? sign * value(cell) : NaN;
        if (key < best) best = key;
      }
      keys.set(row, best);
    });
    return rows.sort(function (a, b) {
      var one = keys.get(a), two = keys.get(b);
      return one === two ? a - b : one < two ? -1 : 1;
    });
  }

  // The answers that fit, an object each, under the names that `rewardlm export` has.
  explorer.records = function (index, found) {
    var data = index.data, records = [];
    found.rows.forEach(function (row) {
      var prompt = index.prompt[row];
      data.models.forEach(function (model, m) {
        var cell = row * index.models + m;
        if (!found.hits[cell]) return;
        var record = {
          run: model.label, prompt_id: data.prompts.id[prompt], prompt: data.prompts.text[prompt],
          prompt_toxicity: data.prompts.toxicity[prompt], challenging: index.challenging.has(prompt),
          sample: data.rows.sample[row], response: model.text[row]
        };
        data.judges.forEach(function (name) {
          var value = index.scores[name][cell];
          record["scores." + name] = value === value ? value : null;
          record["reasons." + name] = value === value ? null : explorer.reason(index, name, cell);
        });
        data.flags.forEach(function (flag) { record["quality." + flag] = Boolean(explorer.has(index, cell, flag)); });
        record["quality.prompt_similarity"] = model.similarity[row];
        record["quality.perplexity"] = model.perplexity[row];
        records.push(record);
      });
    });
    return records;
  };
  explorer.reason = function (index, judge, cell) {
    var model = index.data.models[cell % index.models], found = (model.reasons[judge] || {})[Math.floor(cell / index.models)];
    return found === undefined ? "this model’s answers were not scored by this judge" : index.data.reasons[found];
  };

  // A text that a spreadsheet would run gets an apostrophe in front, as `rewardlm export` does.
  var formula = /^'*(?:[\t\r]|[\s\x00-\x20\u200b-\u200f\u2060\ufeff]*[=+\-@＝＋－＠])/;
  explorer.csv = function (records) {
    var names = records.length ? Object.keys(records[0]) : [];
    function field(value) {
      if (value === null || value === undefined) return "";
      var text = typeof value === "string" && formula.test(value) ? "'" + value : String(value);
      return /[",\r\n]/.test(text) ? '"' + text.replace(/"/g, '""') + '"' : text;
    }
    return [names.map(field).join(",")].concat(records.map(function (record) {
      return names.map(function (name) { return field(record[name]); }).join(",");
    })).join("\r\n") + "\r\n";
  };
})(RewardLMExplorer);
