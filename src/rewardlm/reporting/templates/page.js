// Draws the figures from the data blocks at the end of the page, and works the button that shows hidden texts.
(function () {
  "use strict";
  var config = {
    displaylogo: false,
    responsive: true,
    showTips: false,
    modeBarButtonsToRemove: ["zoom2d", "pan2d", "select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d", "resetScale2d"],
    toImageButtonOptions: { format: "svg" }
  };
  var canvases = Array.prototype.slice.call(document.querySelectorAll("[data-figure]"));
  canvases.forEach(function (canvas) {
    var spec = JSON.parse(document.getElementById(canvas.dataset.figure).textContent);
    Plotly.newPlot(canvas, spec.data, spec.layout, config);
  });

  // Paper is narrower than most windows, and a drawn figure doesn't shrink by itself.
  function resize(width) {
    canvases.forEach(function (canvas) {
      Plotly.relayout(canvas, width ? { width: width, autosize: false } : { width: null, autosize: true });
    });
  }
  window.addEventListener("beforeprint", function () { resize(620); });
  window.addEventListener("afterprint", function () { resize(null); });

  var button = document.getElementById("unveil");
  if (button) {
    button.hidden = false;
    button.addEventListener("click", function () {
      var show = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(show));
      button.textContent = show ? "Hide them again" : "Show all texts";
      document.querySelectorAll("#examples details.veil").forEach(function (veil) { veil.open = show; });
    });
  }
})();
