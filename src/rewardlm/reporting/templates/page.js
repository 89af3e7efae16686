// Draws the figures from the data blocks at the end of the page, marks the place in the list of contents, opens folds.
(function () {
  "use strict";
  var config = {
    displaylogo: false,
    responsive: true,
    showTips: false,
    modeBarButtonsToRemove: ["zoom2d", "pan2d", "select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d", "resetScale2d"],
    toImageButtonOptions: { format: "svg" }
  };
  function all(selector, root) { return Array.prototype.slice.call((root || document).querySelectorAll(selector)); }

  // A number and its "%" stay on one line. What a model has written stays as it was.
  var walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (var node = walker.nextNode(); node; node = walker.nextNode()) {
    if (/\d %/.test(node.data) && !node.parentElement.closest("blockquote, script, style, #explorer-list")) {
      node.data = node.data.replace(/(\d) %/g, "$1\u00a0%");
    }
  }

  // A figure in a closed fold has no width: it is drawn when the fold opens.
  var drawn = [];
  function waiting(root) {
    return all("[data-figure]", root).filter(function (canvas) {
      return drawn.indexOf(canvas) < 0 && !canvas.closest("details:not([open])");
    });
  }
  // Plotly lies in the page as text. To start it takes a second.
  function start() {
    var running = document.createElement("script");
    running.textContent = document.getElementById("plotly").textContent;
    document.head.append(running);
  }
  function drawOne(canvas) {
    if (!window.Plotly) start();
    var spec = JSON.parse(document.getElementById(canvas.dataset.figure).textContent);
    Plotly.newPlot(canvas, spec.data, spec.layout, config);
    drawn.push(canvas);
    // For scripts that answer clicks on a figure.
    canvas.dispatchEvent(new Event("drawn", { bubbles: true }));
  }
  function draw(root) { waiting(root).forEach(drawOne); }
  // One after the other, from the top: meanwhile the page can be scrolled and searched.
  function next() {
    var canvas = waiting()[0];
    if (!canvas) { document.documentElement.dataset.figures = "drawn"; return; }
    drawOne(canvas);
    setTimeout(next, 0);
  }
  // The texts come first: figures wait until all answers can be searched, and until the reader is near one of them. A
  // link to the answers doesn't need any.
  function begin() {
    if (begun) return;
    begun = true;
    if (!waiting().length || !window.IntersectionObserver) return next();
    var near = new IntersectionObserver(function (canvases) {
      if (!canvases.some(function (canvas) { return canvas.isIntersecting; })) {
        document.documentElement.dataset.figures = "waiting";
        return;
      }
      near.disconnect();
      next();
    }, { rootMargin: "100% 0px" });
    waiting().forEach(function (canvas) { near.observe(canvas); });
  }
  var explorer = document.getElementById("explorer"), begun = false;
  if (explorer && !explorer.dataset.ready) {
    explorer.addEventListener("ready", begin, { once: true });
    setTimeout(begin, 10000);  // If it never is.
  } else begin();
  // The event of an opened fold doesn't bubble, so it is caught on its way down.
  document.addEventListener("toggle", function (event) { if (event.target.open) draw(event.target); }, true);

  // A link to something inside a fold opens the fold. What follows "?" or "&" in the address is a part's own state.
  function unfold() {
    var target = document.getElementById(decodeURIComponent(location.hash.slice(1).split(/[?&]/)[0]));
    if (!target) return;
    for (var one = target; one; one = one.parentElement) {
      if (one.tagName === "DETAILS" && !one.classList.contains("veil")) one.open = true;
    }
    if (target.tagName === "DETAILS" || target.closest("details")) { draw(); target.scrollIntoView(); }
  }
  window.addEventListener("hashchange", unfold);
  document.addEventListener("click", function (event) {
    var link = event.target.closest && event.target.closest("a[href^='#']");
    if (link && link.getAttribute("href") === location.hash) unfold();
  });

  // On paper everything is unfolded except what may offend. Figures are set to the width of the paper, because a drawn
  // figure doesn't shrink by itself.
  var opened = [];
  function resize(width) {
    drawn.forEach(function (canvas) {
      Plotly.relayout(canvas, width ? { width: width, autosize: false } : { width: null, autosize: true });
    });
  }
  window.addEventListener("beforeprint", function () {
    opened = all("details.fold:not([open]):not(.veil)");
    opened.forEach(function (fold) { fold.open = true; });
    draw();
    resize(620);
  });
  window.addEventListener("afterprint", function () {
    resize(null);
    opened.forEach(function (fold) { fold.open = false; });
  });

  // One switch for all texts that may offend. It tells scripts that show texts of their own.
  var button = document.getElementById("unveil");
  document.documentElement.dataset.veils = "hidden";
  if (button && (document.querySelector("details.veil") || document.querySelector("[data-veils]:not(html)"))) {
    button.hidden = false;
    button.addEventListener("click", function () {
      var show = button.getAttribute("aria-checked") !== "true";
      button.setAttribute("aria-checked", String(show));
      document.documentElement.dataset.veils = show ? "shown" : "hidden";
      all("details.veil").forEach(function (veil) { veil.open = show; });
      document.dispatchEvent(new CustomEvent("veils", { detail: { show: show } }));
    });
  }

  // The list of contents is open beside the text, and folded above it on a narrow screen.
  var list = document.querySelector(".contents-list");
  var wide = window.matchMedia("(min-width: 68rem)");
  function arrange() { list.open = wide.matches; }
  arrange();
  wide.addEventListener("change", arrange);
  list.addEventListener("click", function (event) { if (event.target.closest("a") && !wide.matches) list.open = false; });
  var links = all("a", list);
  function mark() {
    var here = null;
    links.forEach(function (link) {
      var section = document.getElementById(link.getAttribute("href").slice(1));
      if (section.getBoundingClientRect().top < 120) here = link;
    });
    links.forEach(function (link) {
      if (link === here) link.setAttribute("aria-current", "true"); else link.removeAttribute("aria-current");
    });
  }
  window.addEventListener("scroll", mark, { passive: true });
  mark();
  unfold();
})();
