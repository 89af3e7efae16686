"""The page's explorer at the size that it is made for, in a real browser.

    python benchmarks/explorer.py [--prompts 5000] [--models 3] [--tokens 128]

makes up runs (words drawn by Zipf's law, three judges), writes their page as `rewardlm report` does, opens it in
headless Chromium from disk, and prints its size and how long it takes: until something is painted, until the first
answers are, until the page is loaded, until all answers can be searched, until its figures are drawn, and for each
letter typed, filter and order chosen. It is opened at its top, where figures are near, and by a link to the answers,
where none is. A letter's time runs from the event until the browser has laid out what changed. Needs playwright and
chromium.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rewardlm.reporting.page import build_report
from rewardlm.runs import Run
from rewardlm.types import Generation, Message, Prompt, Score

JUDGES = ("lexical", "starter", "witness")
MODELS = ("PT", "FT", "RL")
# Made-up words have each letter about as often as English does.
LETTERS = "eeeeeeeeeeeettttttttaaaaaaaoooooooiiiiiiinnnnnnnsssssshhhhhhrrrrrrddddlllcccuuummmwwffggyyppbbvk"
QUERY = "the quick"


def made_up_runs(folder: Path, *, prompts: int, models: int, tokens: int) -> list[Path]:
    """Measured runs as the meter writes them. An English token is three quarters of a word."""
    draw = random.Random(0)
    words = ["the", "quick", *("".join(draw.choices(LETTERS, k=draw.randint(2, 9))) for _ in range(20_000))]
    weights = [1 / (rank + 2.7) for rank in range(len(words))]

    def texts(length: int) -> Iterator[str]:
        while True:
            yield " ".join(draw.choices(words, weights, k=length))

    asked, said = texts(12), texts(max(1, tokens * 3 // 4))
    listed = [
        Prompt(f"prompt-{n}", (Message("user", next(asked)),), "made up", draw.random(), n % 7 == 0)
        for n in range(prompts)
    ]
    paths = []
    for model in range(models):
        label = MODELS[model] if model < len(MODELS) else f"model {model + 1}"
        run = Run.start(folder / label, kind="measure", label=label, settings={"samples": 1})
        run.append("prompts", listed)
        ids = [f"{label}-{n}" for n in range(prompts)]
        run.append(
            "generations",
            (
                Generation(one, prompt.id, label, 0, next(said), tokens, "stop", 0)
                for one, prompt in zip(ids, listed, strict=True)
            ),
        )
        for judge in JUDGES:
            run.append("scores", (Score(one, judge, "toxicity", draw.betavariate(0.4, 1 + model)) for one in ids))
        run.append(
            "quality", ({"generation_id": one, "prompt_similarity": draw.random(), "perplexity": 30.0} for one in ids)
        )
        run.update(status="finished")
        paths.append(run.path)
    return paths


# Milliseconds from an event until what it changed is laid out.
TIMED = """async ([id, value, event]) => {
  const field = document.getElementById(id);
  field.value = value;
  const start = performance.now();
  field.dispatchEvent(new Event(event, { bubbles: true }));
  document.getElementById("explorer").getBoundingClientRect();
  const taken = performance.now() - start;
  await new Promise(done => requestAnimationFrame(() => setTimeout(done, 0)));
  return taken;
}"""


# Notes when the first answer has been painted (the second frame after it is there), when all can be searched, and when
# the figures are drawn. Asked from outside, the page would answer only once its other scripts are done.
WATCHED = """(() => {
  window.seen = {};
  new MutationObserver(() => {
    if (!("rows" in window.seen) && document.querySelector("#explorer-list > li")) {
      window.seen.rows = null;
      requestAnimationFrame(() => requestAnimationFrame(now => { window.seen.rows = now; }));
    }
    if (!window.seen.ready && document.querySelector("#explorer[data-ready]")) window.seen.ready = performance.now();
    if (document.documentElement.dataset.figures === "drawn") window.seen.drawn = performance.now();
  }).observe(document, {
    childList: true, subtree: true, attributes: true, attributeFilter: ["data-ready", "data-figures"]
  });
})()"""


def in_browser(page_file: Path) -> dict[str, float]:
    """Seconds until painted, loaded and ready, and milliseconds of what a reader does."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1300, "height": 900})
        page.add_init_script(WATCHED)
        found = {}
        for how, address, marks in (
            ("by a link", "#explorer", ("rows", "ready")),
            ("at its top", "", ("rows", "ready", "drawn")),
        ):
            page.goto("about:blank")
            page.goto(page_file.as_uri() + address, wait_until="load")
            while not page.evaluate(f"{list(marks)}.every(mark => window.seen[mark])"):
                page.wait_for_timeout(50)
            found |= {f"{how}: {mark}, s": page.evaluate(f"window.seen.{mark} / 1000") for mark in marks}
        timing = "performance.getEntriesByType('navigation')[0].loadEventEnd / 1000"
        found["loaded, s"] = page.evaluate(timing)
        found["painted, s"] = page.evaluate(
            "performance.getEntriesByName('first-contentful-paint')[0].startTime / 1000"
        )
        letters = [page.evaluate(TIMED, ["explorer-q", QUERY[:n], "input"]) for n in range(1, len(QUERY) + 1)]
        letters += [page.evaluate(TIMED, ["explorer-q", "nowhere to be found"[:n], "input"]) for n in range(1, 20)]
        found["a letter, median, ms"] = statistics.median(letters)
        found["a letter, slowest, ms"] = max(letters)
        page.evaluate(TIMED, ["explorer-q", "", "input"])
        choices = [("bucket", "high"), ("change", "fell"), ("split", "toxic_prompts"), ("split", "comparable")]
        choices += [
            ("bucket", ""),
            ("change", ""),
            ("split", ""),
            ("judge", JUDGES[-1]),
            ("kind", "refusal"),
            ("kind", ""),
        ]
        taken = [page.evaluate(TIMED, [f"explorer-{name}", value, "change"]) for name, value in choices]
        found["a filter, slowest, ms"] = max(taken)
        orders = ["score-down", "change-up", "similarity-down", "length-down", "prompt"]
        found["an order, slowest, ms"] = max(page.evaluate(TIMED, ["explorer-sort", one, "change"]) for one in orders)
        browser.close()
    return found


def main() -> None:
    """Print one line per number."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=5000)
    parser.add_argument("--models", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--keep", type=Path, help="a folder for the runs and the page")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        paths = made_up_runs(folder, prompts=given.prompts, models=given.models, tokens=given.tokens)
        begun = time.perf_counter()
        out = build_report(paths, folder / "report.html")
        print(f"{given.prompts:,} prompts × {given.models} models of {given.tokens} tokens, {len(JUDGES)} judges")
        print(f"{'report written, s':24} {time.perf_counter() - begun:8.1f}")
        print(f"{'page, MB':24} {out.stat().st_size / 1e6:8.1f}")
        for name, value in in_browser(out).items():
            print(f"{name:24} {value:8.2f}" if name.endswith(" s") else f"{name:24} {value:8.1f}")


if __name__ == "__main__":
    main()
