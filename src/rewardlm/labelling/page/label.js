// One answer after the other, by keyboard. A label counts once the server has written it; the page keeps none itself.
import { byId, setText } from "./dom.js";

const STATES = ["hello", "one", "pause", "end", "lost"];
const LABELS = { 1: 1, 2: 0, 3: null };
const NAME = "rewardlm-labeller";
let about = null;
let labeller = null;
let current = null;
let shownAt = null;
let sinceBreak = 0;
let done = 0;
let busy = false;
let again = null;

function show(state) {
  for (const name of STATES) byId(name).hidden = name !== state;
}

async function ask(path, body) {
  const response = await fetch(path, body === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  });
  if (!response.ok) {
    const said = await response.json().catch(() => ({}));
    throw new Error(typeof said.detail === "string" ? said.detail : `the server answered ${response.status}`);
  }
  return response.json();
}

function next(found) {
  current = found.item;
  done = found.done;
  shownAt = null;
  setText(byId("progress"), `${labeller}: ${found.done} labelled, ${found.left} left`);
  byId("texts").hidden = true;
  byId("show").hidden = false;
  for (const name of ["yes", "no", "unsure"]) byId(name).disabled = true;
  if (current === null) return show("end");
  setText(byId("prompt"), current.prompt);
  setText(byId("text"), current.text);
  if (sinceBreak >= about.break_every) {
    setText(byId("pause-n"), String(sinceBreak));
    return show("pause");
  }
  show("one");
}

// Runs one request at a time; what fails can be tried again. ``what`` says what failed.
async function doing(what, work) {
  if (busy) return;
  busy = true;
  try {
    await work();
    again = null;
  } catch (error) {
    again = () => doing(what, work);
    setText(byId("lost-h"), what);
    setText(byId("lost-why"), `${error.message}. Is rewardlm label still running?`);
    show("lost");
  } finally {
    busy = false;
  }
}

function reveal() {
  if (current === null || shownAt !== null || byId("one").hidden) return;
  shownAt = performance.now();
  byId("texts").hidden = false;
  byId("show").hidden = true;
  for (const name of ["yes", "no", "unsure"]) byId(name).disabled = false;
}

function label(value) {
  if (current === null || shownAt === null || byId("one").hidden) return;
  const given = { labeller, item: current.id, label: value, seconds: (performance.now() - shownAt) / 1000 };
  doing("The label was not kept", async () => {
    const found = await ask("/api/label", given);
    sinceBreak += 1;
    next(found);
  });
}

function undo() {
  if (labeller === null || (byId("one").hidden && byId("end").hidden)) return;
  // The server takes nothing back if it knows of another number: an answer that was lost isn't undone twice.
  const given = { labeller, done };
  doing("Nothing was taken back", async () => next(await ask("/api/undo", given)));
}

function resume() {
  if (byId("pause").hidden) return;
  sinceBreak = 0;
  show("one");
}

function begin(name) {
  labeller = name.trim();
  if (!labeller) return;
  try { localStorage.setItem(NAME, labeller); } catch { /* a browser may refuse to keep it */ }
  doing("The next answer did not come", async () => next(await ask(`/api/next?labeller=${encodeURIComponent(labeller)}`)));
}

const KEYS = {
  " ": reveal, u: undo, g: () => { byId("guide").open = !byId("guide").open; },
  Enter: resume, r: () => { if (again && !byId("lost").hidden) again(); },
  1: () => label(LABELS[1]), 2: () => label(LABELS[2]), 3: () => label(LABELS[3]),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.target.tagName === "INPUT") return;
  // A button with the focus is pressed by these keys as everywhere.
  if ((event.key === " " || event.key === "Enter") && ["BUTTON", "SUMMARY"].includes(event.target.tagName)) return;
  const does = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!does) return;
  event.preventDefault();
  does();
});
const CLICKS = {
  show: reveal, yes: () => label(1), no: () => label(0), unsure: () => label(null), undo, resume,
  retry: () => { if (again) again(); },
};
for (const [name, does] of Object.entries(CLICKS)) {
  // A button that kept the focus would be pressed by the next Space.
  byId(name).addEventListener("click", (event) => { event.currentTarget.blur(); does(); });
}
byId("name-form").addEventListener("submit", (event) => {
  event.preventDefault();
  byId("name").blur();
  begin(byId("name").value);
});

doing("The page did not come", async () => {
  about = await ask("/api/about");
  setText(byId("question"), about.question);
  // It stands alone, as the texts do.
  byId("guideline").textContent = about.guideline;
  show("hello");
  let known = null;
  try { known = localStorage.getItem(NAME); } catch { /* then it is asked */ }
  if (known) byId("name").value = known;
  byId("name").focus();
});
