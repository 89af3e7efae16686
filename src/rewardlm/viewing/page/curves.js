// Curves: the numbers of each run, smoothed and thinned for drawing. All runs share one chart per quantity.
import { byId, el, inLine, keyed, number, setText } from "./dom.js";

// Five colours that keep 3:1 on the light and the dark page, then the same dotted and dashed.
const COLOURS = ["#5a7bc4", "#b5651d", "#9a55cf", "#2f8d7b", "#c0466a"];
const DASHES = ["solid", "dot", "dash", "longdash"];
// Stretches that a line is divided into for drawing; each gives its lowest and its highest point.
const STRETCHES = 300;

export function lineOf(place) {
  return { color: COLOURS[place % COLOURS.length], dash: DASHES[Math.floor(place / COLOURS.length) % DASHES.length] };
}

// The columns of one run, as far as they were read.
export class Columns {
  constructor() {
    this.generation = -1;
    this.n = 0;
    this.columns = new Map();
  }

  add(found) {
    if (found.generation !== this.generation || found.from !== this.n) {
      if (found.from !== 0) return;
      this.columns = new Map();
      this.generation = found.generation;
      this.n = 0;
    }
    for (const [key, values] of Object.entries(found.columns)) {
      if (!this.columns.has(key)) this.columns.set(key, new Array(this.n).fill(null));
      const column = this.columns.get(key);
      for (const value of values) column.push(value);
    }
    this.n = found.n;
    for (const column of this.columns.values()) while (column.length < this.n) column.push(null);
    this.spent = null;
  }

  // Seconds of training up to the end of each step.
  time() {
    if (!this.spent) {
      let sum = 0;
      this.spent = (this.columns.get("seconds") || []).map((value) => (sum += value || 0));
    }
    return this.spent;
  }

  // The points of a quantity: xs, ys, without the steps that lack it.
  points(key, across) {
    const column = this.columns.get(key) || [];
    const all = across === "time" ? this.time() : this.columns.get("step") || [];
    const xs = [], ys = [];
    for (let i = 0; i < column.length; i++) {
      if (column[i] !== null && all[i] !== null) {
        xs.push(all[i]);
        ys.push(column[i]);
      }
    }
    return { xs, ys };
  }
}

// Over about how many points to average: more in a long run, which is looked at from further away.
export function reach(weight, n) {
  return Math.max(1, n / 100) / (1 - weight);
}

// An exponential moving average that weighs what came before by weight, and starts without a pull to zero.
// Written so that equal numbers stay exactly equal: a chart would show the rounding as a peak.
export function smoothed(ys, weight) {
  let mean = 0, total = 0;
  return ys.map((y) => {
    total = weight * total + (1 - weight);
    mean += ((1 - weight) / total) * (y - mean);
    return mean;
  });
}

// Which points to draw: all if they are few, else the ends, and of each stretch the lowest and the highest.
export function thinned(ys, stretches = STRETCHES) {
  const n = ys.length;
  if (n <= 2 * stretches + 2) return ys.map((_, i) => i);
  const kept = [0];
  for (let stretch = 0; stretch < stretches; stretch++) {
    const begin = 1 + Math.floor(((n - 2) * stretch) / stretches);
    const end = 1 + Math.floor(((n - 2) * (stretch + 1)) / stretches);
    let low = begin, high = begin;
    for (let i = begin; i < end; i++) {
      if (ys[i] < ys[low]) low = i;
      if (ys[i] > ys[high]) high = i;
    }
    kept.push(Math.min(low, high));
    if (low !== high) kept.push(Math.max(low, high));
  }
  kept.push(n - 1);
  return kept;
}

// Plotly reads names and labels as markup of its own, what it says of a point as a template, and dollars as formulas.
const ENTITIES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", "{": "&#123;", "$": "&#36;" };
export function plain(text, limit = 40) {
  const shown = inLine(text.length > limit ? text.slice(0, limit - 1) + "…" : text);
  return shown.replace(/[\u0000-\u001f\u007f-\u009f]/g, " ").replace(/[&<>{$]/g, (sign) => ENTITIES[sign]);
}

export class Charts {
  // options: across, smooth, weight, and log, a Set of keys. changed is called when a log button is used.
  constructor(options, changed) {
    this.options = options;
    this.changed = changed;
    this.runs = [];
    this.columns = new Map();
    // By key: a name in a key may be one that no selector can hold.
    this.canvases = new Map();
    this.dirty = new Set();
    this.visible = new Set();
    this.drawing = false;
    this.longest = 0;
    this.watch = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        if (entry.isIntersecting) this.visible.add(entry.target.dataset.key);
        else this.visible.delete(entry.target.dataset.key);
      }
      this.draw();
    }, { rootMargin: "300px" });
    window.addEventListener("beforeprint", () => {
      for (const key of this.dirty) this.drawOne(key);
      this.dirty.clear();
    });
  }

  of(id) {
    if (!this.columns.has(id)) this.columns.set(id, new Columns());
    return this.columns.get(id);
  }

  // charts: what the server lists. runs: the ticked ones, each with its place among all.
  show(charts, runs) {
    this.runs = runs;
    const drawable = charts.filter((chart) => runs.some((run) => this.of(run.id).columns.has(chart.key)));
    this.keys = drawable.map((chart) => chart.key);
    keyed(byId("chart-grid"), drawable, (chart) => chart.key, (chart) => this.create(chart));
    this.redraw();
    return drawable.length;
  }

  create(chart) {
    const id = "chart-" + chart.key.replace(/[^a-z_]/gi, (sign) => "-" + sign.charCodeAt(0).toString(16));
    const button = el("button", { type: "button", class: "log", "aria-pressed": String(this.options.log.has(chart.key)) }, "log scale");
    button.setAttribute("aria-label", "log scale for " + chart.heading);
    button.addEventListener("click", () => {
      const on = !this.options.log.delete(chart.key);
      if (on) this.options.log.add(chart.key);
      button.setAttribute("aria-pressed", String(on));
      this.dirty.add(chart.key);
      this.draw();
      this.changed();
    });
    const canvas = el("div", { class: "canvas", id, role: "img", "data-key": chart.key, "aria-label": chart.heading });
    this.canvases.set(chart.key, canvas);
    this.watch.observe(canvas);
    return el("figure", { class: "plot" },
      el("div", { class: "plot-head" }, el("h3", {}, el("bdi", {}, chart.heading)), button),
      canvas,
      el("figcaption", {}, chart.advice));
  }

  redraw() {
    for (const key of this.keys || []) this.dirty.add(key);
    this.draw();
  }

  // One chart per frame, and only those in sight: the page stays quick with many runs.
  draw() {
    if (this.drawing) return;
    const next = [...this.dirty].find((key) => this.visible.has(key));
    if (next === undefined) return;
    this.drawing = true;
    requestAnimationFrame(() => {
      this.dirty.delete(next);
      this.drawOne(next);
      this.drawing = false;
      this.draw();
    });
  }

  drawOne(key) {
    const canvas = this.canvases.get(key);
    if (!canvas || !canvas.isConnected || !window.Plotly) return;
    const { across, smooth, weight, log } = this.options;
    const traces = [], words = [];
    let longest = 0;
    for (const run of this.runs) {
      const { xs, ys } = this.of(run.id).points(key, across);
      if (!ys.length) continue;
      const line = lineOf(run.place);
      const mode = ys.length === 1 ? "markers" : "lines";
      const shown = smooth && ys.length > 2 ? smoothed(ys, 1 - 1 / reach(weight, ys.length)) : ys;
      if (shown !== ys) {
        const raw = thinned(ys);
        traces.push({ x: raw.map((i) => xs[i]), y: raw.map((i) => ys[i]), mode, line: { ...line, width: 1 }, opacity: Math.max(0.08, 0.35 / Math.sqrt(this.runs.length)), hoverinfo: "skip", showlegend: false });
      }
      const kept = thinned(shown);
      const unit = shown === ys ? "%{y:.4g}" : "%{y:.4g} (raw %{customdata:.4g})";
      traces.push({
        x: kept.map((i) => xs[i]), y: kept.map((i) => shown[i]), customdata: kept.map((i) => ys[i]),
        mode, name: plain(run.title), line: { ...line, width: 2 }, marker: { color: line.color, size: 7 },
        hovertemplate: unit + "<extra>" + plain(run.title) + "</extra>"
      });
      words.push(`${run.title} ${number(ys[ys.length - 1])}`);
      longest = Math.max(longest, xs[xs.length - 1]);
    }
    const positive = traces.every((trace) => trace.y.every((y) => y > 0));
    const button = canvas.parentNode.querySelector("button.log");
    button.hidden = !positive;
    const scale = this.scale(longest);
    if (across === "time") for (const trace of traces) trace.x = trace.x.map((x) => x / scale.seconds);
    const axis = { fixedrange: true, zeroline: false, gridcolor: "#d9dee6" };
    Plotly.react(canvas, traces, {
      height: 220, autosize: true, showlegend: false, dragmode: false, hovermode: "x unified",
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 50, r: 12, t: 8, b: 40 },
      font: { family: "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", size: 13, color: "#5b6470" },
      hoverlabel: { bgcolor: "#1d2430", bordercolor: "#1d2430", font: { color: "#ffffff" } },
      xaxis: { ...axis, nticks: 6, title: { text: across === "time" ? scale.name : "step", font: { size: 12 }, standoff: 4 } },
      yaxis: { ...axis, nticks: 5, type: positive && log.has(key) ? "log" : "linear" }
    }, { displayModeBar: false, responsive: true, showTips: false });
    const heading = canvas.parentNode.querySelector("h3").textContent;
    canvas.setAttribute("aria-label", `${heading}: ${words.join("; ") || "no numbers yet"}`);
  }

  scale(longest) {
    if (this.options.across !== "time" || longest < 180) return { seconds: 1, name: "seconds" };
    return longest < 10800 ? { seconds: 60, name: "minutes" } : { seconds: 3600, name: "hours" };
  }

  explain() {
    const longest = Math.max(0, ...this.runs.map((run) => this.of(run.id).n));
    const thin = longest > 2 * STRETCHES + 2
      ? ` Long runs are drawn in ${STRETCHES} stretches, each with its lowest and highest point, so no spike is lost.` : "";
    const steps = Math.round(reach(this.options.weight, longest));
    const smooth = this.options.smooth
      ? `The strong line is a moving average over about ${steps} steps, the faint one behind it the numbers themselves.`
      : "Each step’s number, not averaged.";
    setText(byId("how-drawn"), smooth + thin);
  }
}

