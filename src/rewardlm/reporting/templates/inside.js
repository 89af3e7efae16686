// Lets readers choose among the answers that are coloured word by word, and ask each word for its numbers.
(function () {
  "use strict";
  function all(selector, root) { return Array.prototype.slice.call(root.querySelectorAll(selector)); }
  // The shares at which colours begin are in data-steps, per mille of the attribution.
  function level(share, steps) { return steps.filter(function (step) { return share >= step; }).length; }

  all(".reader", document).forEach(function (reader) {
    var panels = all(".panel", reader);
    var chosen = { example: "0", model: panels.length ? panels[panels.length - 1].dataset.model : "0" };
    function show() {
      panels.forEach(function (panel) {
        panel.hidden = panel.dataset.example !== chosen.example || panel.dataset.model !== chosen.model;
      });
    }
    all(".choice", reader).forEach(function (group) {
      group.hidden = false;
      group.addEventListener("click", function (event) {
        var button = event.target.closest("button");
        if (!button) return;
        chosen[group.dataset.choice] = button.dataset.value;
        all("button", group).forEach(function (one) { one.setAttribute("aria-pressed", String(one === button)); });
        show();
      });
    });
    show();
    panels.forEach(function (panel) {
      all("[data-words]", panel).forEach(work);
      var first = panel.querySelector("[data-note]");
      if (first) say(furthest(panel) || first);
    });
  });

  // The first picture opens on the word at which the models part most.
  function furthest(panel) {
    var found = null, most = 0;
    all("[data-note]", panel).forEach(function (word) {
      var size = Number(word.className.slice(1));
      if (size > most) { most = size; found = word; }
    });
    return found;
  }

  function words(text) { return all("[role=button]", text); }

  // The tab key stops at one word of a text; the arrow keys move on from there.
  function work(text) {
    function asked(event) {
      var word = event.target.closest("[role=button]");
      if (word) ask(word);
    }
    text.addEventListener("pointerover", asked);
    text.addEventListener("focusin", asked);
    text.addEventListener("click", asked);
    text.addEventListener("keydown", function (event) {
      var found = words(text), at = found.indexOf(document.activeElement);
      var to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: found.length - 1 }[event.key];
      if (at < 0 || to === undefined) return;
      event.preventDefault();
      found[Math.min(Math.max(to, 0), found.length - 1)].focus();
    });
  }

  function ask(word) { if (word.dataset.note) say(word); else rest(word); }

  function mark(word) {
    words(word.parentElement).forEach(function (one) { one.tabIndex = one === word ? 0 : -1; });
  }

  // Drift: both answers of the picture share one note.
  function say(word) {
    var figure = word.closest("figure");
    all("[data-note]", figure).forEach(function (one) { one.setAttribute("aria-pressed", String(one === word)); });
    mark(word);
    // What a model would rather have said was scored by nobody, so it is shown only with the texts that may offend.
    var free = document.documentElement.dataset.veils === "shown" || word.closest("details.veil");
    figure.querySelector(".note-of").textContent = word.dataset.note + (free ? " " + word.dataset.first : "");
  }

  // Attribution: all models that read the same text show the same word.
  function rest(word) {
    var number = Number(word.dataset.explained), steps = JSON.parse(word.closest(".reader").dataset.steps);
    all(".row", word.closest(".same")).forEach(function (row) {
      var shares = JSON.parse(row.dataset.shares)[number], notes = JSON.parse(row.dataset.notes);
      var text = row.querySelector("[data-words]");
      all("span", text).forEach(function (one, place) {
        var share = place < shares.length ? shares[place] : null;
        one.className = one.className.replace(/\ba\d\b/, "a" + (share === null ? 0 : level(share, steps)));
        one.title = share === null ? "" : (share / 10).toFixed(1) + " %";
        if (one.dataset.explained !== undefined) {
          var now = Number(one.dataset.explained) === number;
          one.setAttribute("aria-pressed", String(now));
          one.tabIndex = now ? 0 : -1;
        }
      });
      row.querySelector(".note-of").textContent = row.querySelector(".who").lastElementChild.textContent + ": " + notes[number];
    });
  }

  // A click on a map of heads and MLPs says what is known of the field. Its tokens were scored by nobody, so they are
  // shown only with the texts that may offend.
  function describe(box) {
    var line = box.querySelector(".site-note"), found = null;
    all(".site-notes li", box).forEach(function (one) { if (one.dataset.site === box.dataset.chosen) found = one; });
    if (!found) return;
    var free = document.documentElement.dataset.veils === "shown";
    line.textContent = found.textContent + (free && found.dataset.tokens ? " " + found.dataset.tokens : "");
  }
  document.addEventListener("drawn", function (event) {
    var canvas = event.target, box = canvas.closest(".causes");
    if (!box || !box.querySelector(".site-note")) return;
    canvas.on("plotly_click", function (clicked) {
      box.dataset.chosen = clicked.points[0].customdata;
      describe(box);
    });
  });

  // An answer by part: the chosen part's shades.
  all(".by-part", document).forEach(function (figure) {
    var group = figure.querySelector(".choice");
    group.hidden = false;
    group.addEventListener("click", function (event) {
      var button = event.target.closest("button");
      if (!button) return;
      all("button", group).forEach(function (one) { one.setAttribute("aria-pressed", String(one === button)); });
      all("[data-levels]", figure).forEach(function (one) {
        var level = JSON.parse(one.dataset.levels)[Number(button.dataset.value)];
        one.className = one.className.replace(/\b[ad]\d\b/, (level < 0 ? "d" : "a") + Math.abs(level));
      });
    });
  });

  document.addEventListener("veils", function () {
    all(".reader [data-note][aria-pressed=true]", document).forEach(say);
    all(".causes[data-chosen]", document).forEach(describe);
  });
})();
