// Answers of the ticked runs, side by side: what was asked, what was answered, and what judge and witness said.
import { byId, el, keyed, number, setText } from "./dom.js";

export class Answers {
  // options: step (null is the newest), text, only, show.
  constructor(options) {
    this.options = options;
    this.runs = [];
    this.limits = { low: 0, high: 1 };
    this.found = new Map();
    this.asked = 0;
  }

  // Ask for the answers of these runs anew; late replies to an older question are dropped.
  async load(runs) {
    const question = ++this.asked;
    this.runs = runs;
    const { step, text, only } = this.options;
    const parts = new URLSearchParams({ text, only });
    if (step !== null) parts.set("step", step);
    const found = await Promise.all(runs.map(async (run) => {
      const response = await fetch(`/api/runs/${run.id}/answers?${parts}`);
      return response.ok ? [run.id, await response.json()] : null;
    }));
    if (question !== this.asked) return;
    this.found = new Map(found.filter(Boolean));
    this.render();
  }

  // The steps, of all runs, that kept answers.
  steps() {
    const all = new Set();
    for (const found of this.found.values()) for (const step of found.steps) all.add(step);
    return [...all].sort((a, b) => a - b);
  }

  render() {
    const steps = this.steps();
    const range = byId("step");
    byId("step-tools").hidden = steps.length < 2 || this.filtered();
    range.max = Math.max(0, steps.length - 1);
    const before = steps.filter((step) => this.options.step === null || step <= this.options.step);
    range.value = Math.max(0, before.length - 1);
    const shown = before.length ? String(before[before.length - 1]) : "–";
    setText(byId("step-out"), shown);
    range.setAttribute("aria-valuetext", "step " + shown);
    byId("newest").checked = this.options.step === null;
    keyed(byId("answer-grid"), this.runs.filter((run) => this.found.has(run.id)), (run) => run.id,
      (run) => this.createRun(run), (node, run) => this.updateRun(node, run));
  }

  filtered() {
    return this.options.text !== "" || this.options.only !== "all";
  }

  createRun(run) {
    return el("section", { class: "column", "aria-label": "Answers of " + run.title },
      el("h3", {}, el("bdi", {}, run.title)), el("p", { class: "how" }), el("div", {}));
  }

  updateRun(node, run) {
    const found = this.found.get(run.id);
    const [, how, list] = node.children;
    const n = found.n.toLocaleString("en");
    const many = found.n === 1 ? "1 answer" : `${n} answers`;
    const some = found.answers.length < found.n ? `the newest ${found.answers.length} of ${many}` : many;
    const step = found.answers.length ? found.answers[0].step : null;
    if (!found.answers.length) setText(how, this.filtered() ? "No answer fits." : "No answers yet.");
    else if (this.filtered() || step === null) setText(how, some[0].toUpperCase() + some.slice(1));
    else setText(how, `Step ${step}: ${some}`);
    keyed(list, found.answers, (answer) => JSON.stringify(answer), (answer) => this.createAnswer(answer));
  }

  createAnswer(answer) {
    const chips = el("p", { class: "scores" });
    const chip = (name, value, title, shade) => chips.append(
      el("span", { class: "chip " + shade, title }, el("bdi", {}, name), " " + value));
    if (answer.reward !== null) chip("reward", number(answer.reward), "what it earned", "");
    for (const [name, value] of answer.judges) chip(name, number(value), "by a judge", this.shade(value));
    for (const [name, value] of answer.witnesses) chip(name + " (witness)", number(value), "by a judge that only watches", this.shade(value));
    for (const [name, value] of answer.terms) chip(name, number(value), "another term of the reward", "");
    if (answer.finish === "length") chips.append(el("span", { class: "chip" }, "cut off"));
    if (answer.reason) chips.append(el("span", { class: "chip", title: answer.reason }, "not scored: " + answer.reason));
    const step = this.filtered() && answer.step !== null ? el("p", { class: "how" }, "step " + answer.step) : null;
    return el("article", { class: "example one" }, step, chips,
      el("details", { class: "veil", open: this.options.show },
        el("summary", {}, "Prompt and answer"),
        el("blockquote", { class: "asked", dir: "auto" }, answer.prompt || "(no text)"),
        answer.answer ? el("blockquote", { dir: "auto" }, answer.answer) : el("p", { class: "missing" }, "(an empty answer)")));
  }

  shade(value) {
    if (value === null) return "";
    return value < this.limits.low ? "low" : value > this.limits.high ? "high" : "medium";
  }

  show(on) {
    this.options.show = on;
    for (const veil of document.querySelectorAll("#answer-grid details.veil")) veil.open = on;
  }
}
