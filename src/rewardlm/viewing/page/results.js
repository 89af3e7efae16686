// The comparison of the ticked measurements: a button asks for it, a process beside the server makes it.
import { byId, el, setText } from "./dom.js";

export class Results {
  constructor() {
    this.ids = [];
    this.asked = "";
    byId("compare").addEventListener("click", () => this.compare());
  }

  // Whether there is anything to compare among the ticked runs.
  offer(ticked) {
    const done = ticked.filter((run) => run.state === "finished" && run.kind !== "experiment");
    const measured = done.filter((run) => run.measured);
    const going = ticked.filter((run) => run.measured && run.state !== "finished");
    this.ids = measured.length ? done.map((run) => run.id) : [];
    const key = JSON.stringify(this.ids);
    if (key !== this.asked && this.asked) {
      // Other runs are ticked now, so what was found is not about them.
      this.asked = "";
      byId("verdict").replaceChildren();
      setText(byId("compare-state"), "");
    }
    const names = measured.map((run) => run.title);
    if (measured.length > 1) {
      const first = `${names[0]} comes first, so it is the baseline.`;
      setText(byId("results-say"), `${first} Trainings that are ticked go into the report.`);
      setText(byId("compare"), `Compare ${names.join(", ")}`);
    } else if (measured.length) {
      setText(byId("results-say"), "One measurement is ticked: there is nothing to compare it with, but you can make its page.");
      setText(byId("compare"), `Make the page about ${names[0]}`);
    } else if (going.length) {
      setText(byId("results-say"), "Measurements can be compared when they are finished.");
    }
    byId("compare").hidden = !measured.length;
    return measured.length > 0 || going.length > 0;
  }

  async compare() {
    const key = JSON.stringify(this.ids);
    this.asked = key;
    byId("verdict").replaceChildren();
    const parts = new URLSearchParams(this.ids.map((id) => ["run", id]));
    let told = false;
    while (this.asked === key) {
      let found;
      try {
        const response = await fetch(`/api/comparison?${parts}`);
        found = response.ok ? await response.json() : { status: "failed", error: (await response.json()).detail };
      } catch (error) {
        found = { status: "failed", error: "the server doesn't answer" };
      }
      if (this.asked !== key) return;
      if (found.found && !told) {
        this.tell(found.found);
        told = true;
      }
      if (found.status === "failed") {
        setText(byId("compare-state"), `Not compared: ${found.error}`);
        return;
      }
      if (found.status === "ready") {
        setText(byId("compare-state"), `Done in ${found.seconds} s`);
        this.link(found);
        return;
      }
      setText(byId("compare-state"), told ? "Compared; writing the report…" : "comparing…");
      await new Promise((resolve) => setTimeout(resolve, 700));
    }
  }

  tell(found) {
    const verdict = byId("verdict");
    if (found.primary) verdict.append(el("p", { class: "lead-note", dir: "auto" }, found.primary));
    for (const text of found.sentences) verdict.append(el("p", { class: "lead", dir: "auto" }, text));
    if (!found.sentences.length) verdict.append(el("p", { class: "lead" }, "Nothing was compared: one model was measured, and a change needs a baseline."));
    if (!found.warnings.length) return;
    verdict.append(el("ul", { class: "warnings" }, ...found.warnings.map((one) =>
      el("li", {}, el("h3", {}, one.heading, one.model ? " " : "", one.model ? el("span", { class: "badge plain" }, el("bdi", {}, one.model)) : ""),
        el("p", { dir: "auto" }, one.message)))));
  }

  link(found) {
    const address = `/report/${found.page}`;
    const inTab = (to, text) => el("a", { href: to, target: "_blank", rel: "noopener" }, text);
    const toggle = el("button", { type: "button", "aria-expanded": "false" }, "Show the report here");
    toggle.addEventListener("click", () => {
      const frame = byId("verdict").querySelector("iframe");
      if (frame) frame.remove();
      else byId("verdict").append(el("iframe", { src: address, title: "The report", loading: "lazy" }));
      toggle.setAttribute("aria-expanded", String(!frame));
      setText(toggle, frame ? "Show the report here" : "Close the report");
    });
    byId("verdict").prepend(el("p", { class: "tools" },
      inTab(address, "Open the report in a tab"),
      found.explorer ? inTab(address + "#explorer", "Search all answers") : null,
      toggle));
  }
}
