// Follows the runs: asks the server what changed, and shows it. What you chose is kept in the page's address.
import { Answers } from "./answers.js";
import { Charts, lineOf } from "./curves.js";
import { byId, duration, el, keyed, number, percent, setText } from "./dom.js";
import { Results } from "./results.js";

const LIVE = 1000, CALM = 3000, LOST = 2000, HIDDEN = 10000;
// At first, no more runs than this are ticked.
const MOST_TICKED = 10;
const WORDS = { running: "running", finished: "finished", stopped: "stopped", killed: "stopped", silent: "silent" };

const asked = new URLSearchParams(location.hash.slice(1));
const options = {
  ticked: asked.has("runs") ? new Set(asked.get("runs").split(",")) : null,
  across: asked.get("x") === "time" ? "time" : "step",
  smooth: asked.get("smooth") !== "0",
  weight: Math.min(0.98, Math.max(0.1, Number(asked.get("smooth")) || 0.6)),
  log: new Set((asked.get("log") || "").split(",").filter(Boolean)),
  step: asked.has("step") && Number.isFinite(Number(asked.get("step"))) ? Number(asked.get("step")) : null,
  text: asked.get("text") || "",
  only: asked.get("only") || "all",
  show: false
};
let state = null, tag = null, timer = null, answersOf = "", busy = false;
const charts = new Charts(options, remember);
const answers = new Answers(options);
const results = new Results();

function remember() {
  const parts = new URLSearchParams();
  if (options.ticked) parts.set("runs", [...options.ticked].join(","));
  if (options.across !== "step") parts.set("x", options.across);
  if (!options.smooth) parts.set("smooth", "0");
  else if (options.weight !== 0.6) parts.set("smooth", options.weight);
  if (options.log.size) parts.set("log", [...options.log].join(","));
  if (options.step !== null) parts.set("step", options.step);
  if (options.text) parts.set("text", options.text);
  if (options.only !== "all") parts.set("only", options.only);
  history.replaceState(null, "", location.pathname + (parts.size ? "#" + parts : ""));
}

// A label that comes twice has its folder beside it.
function titled(runs) {
  const counts = new Map();
  for (const run of runs) counts.set(run.label, (counts.get(run.label) || 0) + 1);
  return runs.map((run, place) => ({ ...run, place, title: counts.get(run.label) > 1 ? `${run.label} (${run.name})` : run.label }));
}

function isTicked(run) {
  return options.ticked ? options.ticked.has(run.id) : run.place < MOST_TICKED;
}

async function look() {
  if (busy) return;
  busy = true;
  clearTimeout(timer);
  let wait = LOST;
  try {
    const response = await fetch("/api/state");
    if (!response.ok) throw new Error(await response.text());
    const now = response.headers.get("etag");
    if (now !== tag) {
      state = await response.json();
      tag = now;
      await show();
    }
    const live = state.reading || state.waiting.length > 0 || state.runs.some((run) => run.state === "running");
    setText(byId("connection"), state.reading ? "Reading the runs…" : live ? "Live" : "Nothing is running");
    document.body.classList.remove("lost");
    wait = document.hidden ? HIDDEN : live ? LIVE : CALM;
  } catch (error) {
    tag = null;
    setText(byId("connection"), "No word from the server: start rewardlm view again. You see what it last said.");
    document.body.classList.add("lost");
  }
  busy = false;
  timer = setTimeout(look, wait);
}

async function show() {
  const runs = titled(state.runs);
  answers.limits = state.limits;
  showRuns(runs);
  const ticked = runs.filter(isTicked);
  showDoubts(ticked);
  await readCurves(ticked);
  const n = charts.show(state.charts, ticked);
  charts.explain();
  reveal("curves", n > 0);
  const answering = ticked.filter((run) => run.samples > 0);
  reveal("answers", answering.length > 0);
  const wanted = JSON.stringify([answering.map((run) => [run.id, run.version]), options.step, options.text, options.only]);
  if (wanted !== answersOf) {
    answersOf = wanted;
    await answers.load(answering);
  }
  reveal("results", results.offer(ticked));
}

function reveal(id, on) {
  byId(id).hidden = !on;
  document.querySelector(`nav a[href="#${id}"]`).hidden = !on;
}

async function readCurves(runs) {
  await Promise.all(runs.map(async (run) => {
    const known = charts.of(run.id);
    if (known.generation === run.generation && known.n === run.n) return;
    const response = await fetch(`/api/runs/${run.id}/curves?generation=${known.generation}&start=${known.n}`);
    if (response.ok) known.add(await response.json());
  }));
}

function showRuns(runs) {
  byId("tick-tools").hidden = runs.length < 3;
  keyed(byId("run-list"), runs, (run) => run.id, createRun, updateRun);
  const waiting = byId("waiting");
  waiting.hidden = !state.waiting.length;
  keyed(waiting, state.waiting, (one) => JSON.stringify(one),
    (one) => el("li", {}, "Waiting for runs in ", el("code", {}, one.place), one.there ? "" : " (there is no such folder yet)"));
  const problems = byId("problems");
  problems.hidden = !state.broken.length;
  keyed(problems, state.broken, (text) => text, (text) => el("li", { class: "fatal" }, el("p", { dir: "auto" }, text)));
}

function createRun(run) {
  const box = el("input", { type: "checkbox", id: "run-" + run.id });
  box.addEventListener("change", () => {
    const all = titled(state.runs);
    options.ticked = new Set(all.filter((one) => one.id === run.id ? box.checked : isTicked(one)).map((one) => one.id));
    remember();
    show();
  });
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "swatch");
  svg.setAttribute("viewBox", "0 0 28 8");
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
  line.setAttribute("d", "M0 4H28");
  svg.append(line);
  return el("li", { class: "run" },
    el("div", { class: "run-head" }, box, svg, el("label", { for: box.id }, el("bdi", {})), el("span", { class: "badge state" })),
    el("p", { class: "run-what" }),
    el("div", { class: "run-progress" }, el("progress", { "aria-label": "Progress of " + run.title }), el("span", {})),
    el("p", { class: "run-numbers" }),
    el("div", { class: "run-scores" }),
    el("p", { class: "run-status" }),
    el("p", { class: "run-name" }, el("code", {})));
}

function updateRun(node, run) {
  const line = lineOf(run.place);
  const path = node.querySelector("path");
  path.setAttribute("stroke", line.color);
  path.setAttribute("stroke-dasharray", { solid: "none", dot: "2 3", dash: "6 4", longdash: "11 4" }[line.dash]);
  node.querySelector("input").checked = isTicked(run);
  setText(node.querySelector("label bdi"), run.title);
  const badge = node.querySelector(".state");
  setText(badge, WORDS[run.state] || run.state);
  badge.className = "badge state " + run.state;
  setText(node.querySelector(".run-what"), run.what);
  const { done, total, unit } = run.progress;
  const bar = node.querySelector("progress");
  node.querySelector(".run-progress").hidden = !done && !total;
  bar.hidden = !total;
  if (total) {
    bar.max = total;
    bar.value = Math.min(done, total);
  }
  const left = run.seconds_left !== null ? `, about ${duration(run.seconds_left)} left` : "";
  setText(node.querySelector(".run-progress span"), `${done.toLocaleString("en")}${total ? " of " + total.toLocaleString("en") : ""} ${unit}${left}`);
  const numbers = Object.entries(run.numbers).map(([key, value]) => `${NAMES[key] || key} ${number(value)}`);
  setText(node.querySelector(".run-numbers"), numbers.join(" · "));
  node.querySelector(".run-numbers").hidden = !numbers.length;
  const scores = run.scores.map((one) =>
    `${one.scorer}: ${percent(one.toxic_fraction)} toxic, mean ${number(one.mean)}, of ${one.scored.toLocaleString("en")} answers`
    + (one.seen > one.scored ? ` (${(one.seen - one.scored).toLocaleString("en")} unscored)` : ""));
  if (scores.length && run.state !== "finished") scores.push("So far: long prompts come first, so these shares still move.");
  keyed(node.querySelector(".run-scores"), scores, (text) => text, (text) => el("p", { dir: "auto" }, text));
  const status = [run.problem, run.status, run.go_on].filter(Boolean).join(". ");
  const said = node.querySelector(".run-status");
  setText(said, status ? status[0].toUpperCase() + status.slice(1) + "." : "");
  said.hidden = !status;
  setText(node.querySelector(".run-name code"), run.name);
}

const NAMES = {
  loss: "loss", eval_loss: "evaluation loss", reward_mean: "reward", toxicity_mean: "toxicity", kl: "KL",
  entropy: "entropy", response_tokens: "tokens an answer"
};

// One card per kind, which is what stands before the colon; in it, one line per run.
function showDoubts(runs) {
  const kinds = new Map();
  for (const run of runs) {
    for (const doubt of run.doubts) {
      const [kind, ...rest] = doubt.text.split(":");
      if (!kinds.has(kind)) kinds.set(kind, []);
      kinds.get(kind).push({ ...doubt, title: run.title, rest: rest.join(":").trim() || doubt.text });
    }
  }
  const all = [...kinds];
  reveal("doubts", all.length > 0);
  setText(document.querySelector("nav a[href='#doubts'] b"), String(all.length));
  keyed(byId("doubt-list"), all, (one) => JSON.stringify(one), ([kind, lines]) =>
    el("li", {}, el("h3", {}, kind.replaceAll("_", " ")), ...lines.map((line) => {
      const when = line.n === 1 ? `step ${line.last}` : `steps ${line.first} to ${line.last}, ${line.n.toLocaleString("en")} times`;
      return el("p", { dir: "auto" }, el("strong", {}, el("bdi", {}, line.title)), `, ${when}: ${line.rest}`);
    })));
}

function on(id, event, act) {
  byId(id).addEventListener(event, (happened) => {
    act(happened.target);
    remember();
  });
}

function again() {
  answersOf = "";
  if (state) show();
}

function showTexts(shown) {
  answers.show(shown);
  byId("show-texts").setAttribute("aria-pressed", String(shown));
  setText(byId("show-texts"), shown ? "Hide them again" : "Show all texts");
}

function moveStep(by) {
  const steps = answers.steps();
  const range = byId("step");
  const place = Math.min(steps.length - 1, Math.max(0, Number(range.value) + by));
  if (!steps.length) return;
  // The newest is followed, not held.
  options.step = place === steps.length - 1 ? null : steps[place];
  remember();
  again();
}

byId("across").value = options.across;
byId("smooth").checked = options.smooth;
byId("weight").value = options.weight;
byId("text").value = options.text;
byId("only").value = options.only;
if (byId("only").selectedIndex < 0) byId("only").value = options.only = "all";
setText(byId("weight-out"), Number(options.weight).toFixed(2));

function redraw() {
  charts.redraw();
  charts.explain();
}
on("across", "change", (box) => { options.across = box.value; redraw(); });
on("smooth", "change", (box) => { options.smooth = box.checked; redraw(); });
on("weight", "input", (range) => {
  options.weight = Number(range.value);
  setText(byId("weight-out"), options.weight.toFixed(2));
  redraw();
});
on("step", "input", (range) => {
  const steps = answers.steps();
  options.step = Number(range.value) >= steps.length - 1 ? null : steps[Number(range.value)];
  again();
});
on("newest", "change", (box) => {
  const steps = answers.steps();
  options.step = box.checked || !steps.length ? null : steps[Number(byId("step").value)];
  again();
});
on("text", "input", (box) => { options.text = box.value.trim(); again(); });
on("only", "change", (box) => { options.only = box.value; again(); });
byId("show-texts").addEventListener("click", () => showTexts(!options.show));
for (const [id, pick] of [["tick-all", true], ["tick-none", false]]) {
  byId(id).addEventListener("click", () => {
    options.ticked = new Set(pick ? state.runs.map((run) => run.id) : []);
    remember();
    show();
  });
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
  if (event.key === "/" && !byId("answers").hidden) {
    event.preventDefault();
    byId("text").focus();
  } else if (event.key === "t") showTexts(!options.show);
  else if (event.key === ",") moveStep(-1);
  else if (event.key === ".") moveStep(1);
});
document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
look();
