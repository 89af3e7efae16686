"""Every text of every page that is written to a file holds all of ``payloads.PAYLOADS``: none runs, none asks anybody,
and all are shown as the texts that they are.

The pages are opened without their Content-Security-Policy, so that escaping alone must hold; what the policy itself
would still stop has a test of its own.
"""

from __future__ import annotations

import functools
import re
import sys
from pathlib import Path
from typing import Any, TypedDict

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "reporting"))

import explorer_sample
import report_sample
import whole_sample
from plotly.offline import get_plotlyjs
from test_judge_page import CONFUSION, hatecheck, result

from payloads import AWAY, PAYLOADS, RUN, STRANGERS, TEXTS, TURNING, Disguise, disguised, squashed
from rewardlm.interpreting.findings import Interpretation
from rewardlm.judges.migrate import Migration
from rewardlm.judges.results import JudgePair, JudgeResult
from rewardlm.measuring.comparison import Comparison
from rewardlm.measuring.frontier import Frontier
from rewardlm.measuring.power import Plan
from rewardlm.reporting import figures, frontier_page, migration_page, power_page
from rewardlm.reporting.examples import Example, ShownAnswer
from rewardlm.reporting.page import build_report, render_page
from rewardlm.reporting.subjects import Kind
from rewardlm.runs import Run
from rewardlm.types import Message, Prompt

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def unchanged(text: str, path: str = "") -> str:
    """Of a calm page."""
    return text


class AboutModel(TypedDict):
    label: str
    kind: Kind
    model: str
    adapter: str | None
    rewards: list[str]
    settings: dict[str, Any]
    environment: Any


class AboutPrompts(TypedDict):
    source: str
    number: int
    toxic_by: str
    hash: str


class About(TypedDict):
    """What ``render_page`` is told of how it was measured."""

    models: list[AboutModel]
    prompts: AboutPrompts
    judges: list[Any]
    examples_by: Any
    threshold: float
    strict: bool
    limits: list[str]
    notes: list[str]


# Texts that are words of RewardLM's own, though their types don't say so: places in code look them up.
KEPT = (
    "ModelSummary.quality_sample keys", "ModelSummary.quality_change keys", "ModelSummary.utility keys",
    "ModelSummary.utility_change keys", "ModelSummary.non_inferiority keys", "ModelFacts.left_out keys",
    "Stratum.from_", "Stratum.to", "CausalRow.kind", "AttributionBand.transition", "Plan.sources keys",
    "Frontier.warnings keys", "ModelSummary.pair_judge keys",
)  # fmt: skip


def report(text: Any, folder: Path) -> Path:
    """The page of a comparison, with examples, training, what is inside, and steering."""
    inside = disguised(whole_sample.whole_interpretation().dump(), Interpretation, text, keep=KEPT)
    page = render_page(
        Comparison.model_validate(
            disguised(whole_sample.whole_comparison().model_dump(by_alias=True), Comparison, text, keep=KEPT)
        ),
        title=text("The title"),
        examples=[
            Example(**{**one, "answers": [ShownAnswer(**{"cut_off": True, **answer}) for answer in one["answers"]]})
            for one in disguised(report_sample.sample_examples(), list[Example], text)
        ],
        training=disguised(whole_sample.whole_training(), dict[str, list[Metrics]], text),
        about=disguised(whole_sample.whole_about(), About, text),
        interpretations=[
            (text("an interpretation"), Interpretation.model_validate(inside)),
            # With another beside it, each has its label above it.
            (text("another interpretation"), Interpretation.model_validate({**inside, "shown": [], "inside": None})),
        ],
        frontier=_frontier(text),
    )
    return _written(page, folder)


class Metrics(TypedDict, total=False):
    """Of a record of metrics.jsonl, what holds texts."""

    step: int
    seconds: float
    loss: float
    eval_loss: float
    reward_mean: float
    kl: float
    entropy: float
    response_tokens: float
    clip_fraction: float
    value_loss: float
    toxicity_mean: float
    phase_seconds: Any
    warnings: list[str]
    terms: dict[str, float]
    toxicity_by_witness: dict[str, float]


def runs(text: Any, folder: Path) -> Path:
    """The page of run folders as the commands leave them, whose every text and name is disguised; with its explorer."""
    names = [text(f"folder {number}").replace("/", "\u2215")[:60] for number in range(7)]
    prompts = [
        Prompt(
            text(f"prompt id {number}"),
            (
                *(
                    (Message("user", text("a question before")), Message("assistant", text("what it said")))[
                        : number % 3
                    ]
                ),
                Message("user", text(f"prompt {number}")),
            ),
            text("where prompts are from"),
            (0.9, 0.1, None)[number % 3],
            number % 2 == 0,
        )
        for number in range(4)
    ]
    reward, witness = text("the reward"), text("the witness")
    measured = []
    for place, label in enumerate(("PT", "FT", "RL")):
        answers = {(one.id, 0): text(f"answer {number} of {label}") for number, one in enumerate(prompts)}
        scores = {
            judge: {
                key: text(f"why {label} has no score")
                if (number + place) % 4 == 3
                else (0.9, 0.1)[(number + place) % 2]
                for number, key in enumerate(answers)
            }
            for judge in (reward, witness)
        }
        run = explorer_sample.measured(
            folder / names[place], text(label), answers, prompts=prompts, scores=scores,
            rewards=[reward] if label == "RL" else [],
        )  # fmt: skip
        run.update(
            model=text("a model id"), adapter=text(f"adapter of {label}") if place else None,
            settings={text("a key"): text(f"a value of {label}"), "more": {text("a key inside"): [text("in a list")]}},
            environment={"date": text("a date"), "versions": {text("a package"): text("a version")},
                         text("a fact"): text("a machine")},
            prompts={"source": text("a source of prompts"), "part": text("a part"), "n": 4, "dropped": {}},
            toxic_by=text("who says that prompts are toxic"),
            scorers=[{"name": judge, "labels": [text("a label")], "revision": text("a revision")}
                     for judge in (reward, witness)],
            thresholds={witness: {"value": 0.4, "matching": "share", "old": 0.5, "n": 90, "source": text("a file"),
                                  "redrawn": []}},
        )  # fmt: skip
        measured.append(run)
    drift = {
        "id": f"{text('RL')}:{measured[2].label}-{prompts[0].id}-0", "author": 2, "pair": 0,
        "words": [[text("a word"), 1], [text("another word"), 2]],
        "logprobs": [[-6, -1, -2], [-6, -1, -2], [-1, -1, -4]],
    }  # fmt: skip
    words = [[text("before the prompt"), "template"], [text("a word asked"), "prompt"], [text("a word said"), "answer"]]
    attribution = {"id": drift["id"], "author": 2, "reader": 2, "words": words, "scores": [[1, -2, 1]]}
    found = disguised(whole_sample.whole_interpretation().dump(), Interpretation, text, keep=KEPT)
    inside = explorer_sample.interpretation(
        folder / names[3], measured, [drift], [attribution], found, label=text("an interpretation")
    )
    training = Run.start(folder / names[4], kind="rlaf", label=text("a training"), settings={})
    training.append(
        "metrics",
        [
            {"step": step, "kl": 0.1 * step, "warnings": [text("what training warned of")],
             "terms": {text("a term"): 0.5}, "toxicity_by_witness": {witness: 0.5}}
            for step in (1, 2)
        ],
    )  # fmt: skip
    training.update(status="finished", stopped=text("why it stopped"))
    odd = Run.start(folder / names[5], kind=text("an odd kind"), label=text("an odd run"), settings={})
    judged = _judged(text, folder / names[6])
    return build_report(
        [*(one.path for one in measured), inside.path, training.path, odd.path, judged.path], folder / "report.html"
    )


def _written(page: str, folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "report.html").write_text(page, encoding="utf-8")
    return folder / "report.html"


def _judged(text: Any, path: Path) -> Run:
    run = Run.start(
        path, kind="judge-evaluation", label=text("an evaluation"), settings={text("a key"): text("a value")}
    )
    found: list[Any] = [
        hatecheck("one"), hatecheck("two", 0.05), result("one", "rtp", kind="scores", trained_on_this_file=True),
    ]  # fmt: skip
    found[0]["dropped"] = {"were not in English": 3}
    run.append("results", disguised(found, list[JudgeResult], text))
    run.update(
        status="finished", confusion=disguised([CONFUSION], list[JudgePair], text),
        environment={"date": text("a date"), "versions": {text("a package"): text("a version")}},
    )  # fmt: skip
    return run


def judges(text: Any, folder: Path) -> Path:
    """The page about judges alone, of two evaluations, one of which isn't finished, and a training of a judge."""
    first = _judged(text, folder / "one")
    second = _judged(text, folder / text("unfinished").replace("/", "\u2215")[:60])
    second.update(status="running")
    training = Run.start(folder / "three", kind="judge", label=text("a training"), settings={})
    training.append("metrics", [{"step": 1, "loss": 0.1, "warnings": [text("what training warned of")]}])
    return build_report([first.path, second.path, training.path], folder / "report.html", title=text("The title"))


def migration(text: Any, folder: Path) -> Path:
    """The page of ``judge migrate``."""
    found = disguised(whole_sample.whole_migration(), Migration, text)
    return migration_page.write_migration_page(found, folder / "page.html")


def _frontier(text: Any) -> Frontier:
    found = disguised(whole_sample.whole_frontier().model_dump(), Frontier, text, keep=KEPT)
    return Frontier.model_validate(found)


def frontier(text: Any, folder: Path) -> Path:
    """The page of ``frontier``."""
    return frontier_page.write_frontier_page(_frontier(text), folder / "page.html", title=text("The title"))


def power(text: Any, folder: Path) -> Path:
    """The page of ``power``."""
    found = Plan.model_validate(disguised(whole_sample.whole_plan().model_dump(), Plan, text, keep=KEPT))
    return power_page.write_power_page(found, folder / "page.html", title=text("The title"))


PAGES = (report, runs, judges, migration, frontier, power)

# What of an interpretation no page shows: facts of its models, words that are compared, kinds of words.
_OF_AN_INTERPRETATION = {
    # The page makes names of heads and MLPs itself; which ones were patched together it counts.
    "head 0.0", "head 0.1", "head 1.1", "mlp 0", "stream 1", "stream 2", "a part by name",
    " liars", "a text", "an/adapter", "answer", "best-of-n", "end", "float32", "fools", "input_x_gradient",
    "generation", "inside can’t be read: it draws", "llama", "mlp", "pairs", "prompt", "tables", "template",
}  # fmt: skip
_HASH = "ab" * 32
# Texts that a page keeps to itself, shows only the beginning of, or writes as JSON; by page. All others must be read on
# it, whole.
HIDDEN: dict[str, set[str]] = {
    "report": {
        *_OF_AN_INTERPRETATION, "5f3c9a" * 10, "PT again", "a term of the reward", "a witness", "finetune", "homonym",
        "none + odd", "odd", "own prompts", "r0", "r1", "r2",
    },
    "runs": {
        *_OF_AN_INTERPRETATION, *(f"folder {number}" for number in range(7)), _HASH, "a term", "a value",
        "an evaluation", "an interpretation", "an odd run", "before the prompt", "in a list", "rev-1", "tiny",
        "where prompts are from", "why it stopped",
    },
    "judges": {_HASH, "rev-1", "unfinished"},
    "migration": {"a revision", "empty"},
    "frontier": {"finetune", "none + odd", "odd"},
    "power": set(),
}  # fmt: skip


class Built:
    """A page in disguise, and the same page without."""

    def __init__(self, make: Any, folder: Path) -> None:
        self.text = Disguise("lexical", "lexical2", "the reward", "the witness")
        self.calm = make(unchanged, folder / "calm")
        self.file = make(self.text, folder / "hostile")

    def html(self, file: Path) -> str:
        """Without plotly's script, which is five megabytes."""
        return file.read_text(encoding="utf-8").replace(get_plotlyjs().replace("\r\n", "\n"), "")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """By the function that makes a page, each made once."""
    return functools.cache(lambda make: Built(make, tmp_path_factory.mktemp(make.__name__)))


@pytest.fixture(scope="module")
def parsed(browser):
    """What Chromium's parser makes of a page: its elements in order, each with the names of its attributes. Nothing
    is run or fetched."""
    context = browser.new_context()
    page = context.new_page()

    def found(html: str) -> Any:
        return page.evaluate(
            """html => {
              const made = new DOMParser().parseFromString(html, "text/html");
              const all = selector => [...made.querySelectorAll(selector)];
              return {
                elements: all("*").map(e => [e.localName, ...e.getAttributeNames().sort()].join(" ")),
                comments: made.evaluate("count(//comment())", made).numberValue,
                ids: all("[id]").map(e => e.id),
                policy: made.querySelector("meta[http-equiv]").content,
                figures: all("script[type='application/json']").map(e => JSON.parse(e.textContent)),
              };
            }""",
            html,
        )

    yield found
    context.close()


def strings(value: Any) -> list[str]:
    """Every text in a figure."""
    if isinstance(value, str):
        return [value]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for one in inside for text in strings(one)]


# The tags and templates that figures themselves write.
OWN = re.compile(r"</?b>|<br>|<extra></extra>|%\{(x|y|z|value|text|label|customdata(\[\d\])?)(:[-+,.~\w]+)?\}")


@pytest.mark.parametrize("make", PAGES)
def test_a_page_in_disguise_has_the_elements_of_a_calm_one(built, parsed, make):
    one = built(make)
    calm, hostile = parsed(one.html(one.calm)), parsed(one.html(one.file))
    if make is runs:
        # What an answer is like decides which are chosen as examples, and what is said of them.
        known = {*calm["elements"], *parsed(built(report).html(built(report).calm))["elements"]}
        assert {*hostile["elements"]} - known == set()
    else:
        assert hostile["elements"] == calm["elements"]
    assert {*hostile["ids"]} == {*calm["ids"]}
    assert len(set(hostile["ids"])) == len(hostile["ids"])
    assert hostile["comments"] == calm["comments"]
    drawn = [OWN.sub("", text) for text in strings(hostile["figures"])]
    assert [text for text in drawn if "<" in text or ">" in text or "%{" in text] == []


# Points at each trace of each figure, which plotly does every 50 ms at most; what the figures say.
HOVERED = """async () => {
  const said = await Promise.all([...document.querySelectorAll(".js-plotly-plot")].map(async figure => {
    const found = [];
    for (const [curveNumber, trace] of figure.data.entries()) {
      if (trace.type === "sankey" || trace.hoverinfo === "skip") continue;
      Plotly.Fx.hover(figure, [{ curveNumber, pointNumber: trace.type === "heatmap" ? [0, 0] : 0 }]);
      for (const text of figure.querySelectorAll(".hoverlayer text")) found.push(text.textContent);
      await new Promise(resolve => setTimeout(resolve, 80));
    }
    for (const text of figure.querySelectorAll("svg text")) found.push(text.textContent);
    return found;
  }));
  return said.flat();
}"""


def used(seen: Any) -> str:
    """Everything on the page is opened, pointed at and searched. All texts that were on it meanwhile."""
    page = seen.page
    texts = []
    if page.locator("#unveil").is_visible():
        page.click("#unveil")
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    page.wait_for_timeout(300)
    if page.locator("#explorer").count():
        page.wait_for_selector("#explorer[data-ready=yes]", state="attached")
        for row in range(page.locator("#explorer-list > li").count()):
            page.locator("#explorer-list > li").nth(row).locator("h3 button").click()
        for name in ("model", "judge", "words"):
            for value in page.eval_on_selector_all(f"#explorer-{name} option", "found => found.map(one => one.value)"):
                page.select_option(f"#explorer-{name}", value)
                page.evaluate(
                    "[...document.querySelectorAll('#explorer-list blockquote ~ button')].forEach(one => one.click())"
                )
                texts.append(page.text_content("#explorer"))
            page.evaluate("document.getElementById('explorer-clear').click()")
        for payload in (PAYLOADS[11], '"' + PAYLOADS[1] + '"', "no such word"):
            page.fill("#explorer-q", payload)
            texts.append(page.text_content("#explorer"))
        page.fill("#explorer-q", "")
    # Each word of each answer is pointed at; then the panels stay as they are.
    texts += page.evaluate(
        """() => [...document.querySelectorAll(".reader .panel")].flatMap(panel => {
          panel.hidden = false;
          return [...panel.querySelectorAll("[role=button]")].flatMap(word => {
            word.dispatchEvent(new Event("pointerover", { bubbles: true }));
            return [...word.closest("figure").querySelectorAll(".note-of")].map(one => one.textContent);
          });
        })"""
    )
    # Every head and MLP of every map is chosen.
    texts += page.evaluate(
        """() => [...document.querySelectorAll(".causes")].flatMap(box =>
          [...box.querySelectorAll(".site-notes li")].map(one => {
            box.dataset.chosen = one.dataset.site;
            document.dispatchEvent(new Event("veils"));
            return box.querySelector(".site-note").textContent;
          }))"""
    )
    texts += page.evaluate(HOVERED)
    return " ".join([*texts, page.evaluate(TEXTS)])


@pytest.mark.parametrize("make", PAGES)
def test_no_payload_does_anything_and_all_are_read(built, visit, parsed, make):
    one = built(make)
    seen = visit(one.file, bypass_csp=True)
    shown = squashed(used(seen))
    assert seen.page.evaluate("window.canary") is None
    assert seen.page.evaluate(STRANGERS, "no others") == []
    assert seen.page.evaluate(TURNING) == []
    assert seen.page.evaluate("getComputedStyle(document.body).display") == "block"
    # The page's own scripts, and plotly's once it runs.
    scripts = [element for element in parsed(one.html(one.file))["elements"] if element.startswith("script")]
    assert seen.page.locator("script").count() == len(scripts) + 1
    assert seen.page.url.split("#")[0] == seen.url
    seen.assert_quiet()
    missing = {text for text, made in one.text.known.items() if squashed(made) not in shown}
    assert missing - HIDDEN[make.__name__] == set()


def test_every_payload_is_a_text_wherever_a_figure_shows_it(built, visit):
    """As a tick, a category, a legend's entry, a note, an axis's title, and in what is said of a point."""
    seen = visit(built(power).file, bypass_csp=True)
    limit = 200
    names = [figures.plain(payload, limit) for payload in PAYLOADS]
    layout = figures.curves_layout(names[0], names[1], height=30 * len(names))
    layout["yaxis"] |= {"tickvals": list(range(len(names))), "ticktext": names}
    layout["xaxis2"] = {"type": "category", "overlaying": "x", "side": "top"}
    layout["annotations"] = [
        {"text": name, "x": 1, "y": place, "showarrow": False, "xanchor": "left"} for place, name in enumerate(names)
    ]
    traces = [
        {"type": "scatter", "mode": "markers", "name": name, "x": [1], "y": [place], "text": [name],
         "hovertemplate": f"{name}, at %{{x}}: %{{customdata}}<extra></extra>", "customdata": [name]}
        for place, name in enumerate(names)
    ]  # fmt: skip
    traces.append({"type": "bar", "x": names, "y": [1] * len(names), "xaxis": "x2", "name": "bars"})
    said = seen.page.evaluate(
        """async spec => {
          const figure = document.body.appendChild(document.createElement("div"));
          await Plotly.newPlot(figure, spec.data, spec.layout);
          const hovered = [];
          for (let curveNumber = 0; curveNumber < spec.data.length - 1; curveNumber++) {
            Plotly.Fx.hover(figure, [{ curveNumber, pointNumber: 0 }]);
            hovered.push(figure.querySelector(".hoverlayer .nums").textContent);
            await new Promise(resolve => setTimeout(resolve, 80));
          }
          const of = selector => [...figure.querySelectorAll(selector)].map(one => one.textContent);
          return {
            hovered, ticks: of(".ytick text"), categories: of(".x2tick text"), legend: of(".legendtext"),
            notes: of(".annotation-text"), titles: of(".xtitle, .ytitle"), links: of("a:not(.modebar a)"),
            bold: figure.querySelectorAll("[style*=bold], [style*=italic], tspan[dy='-0.6em']").length,
          };
        }""",
        {"data": traces, "layout": layout},
    )
    wanted = [squashed(payload[:limit]) for payload in PAYLOADS]
    for place in ("ticks", "notes"):
        assert [squashed(text) for text in said[place]] == wanted
    # Bars follow.
    assert [squashed(text) for text in said["legend"]] == [*wanted, "bars"]
    assert {squashed(text) for text in said["categories"]} <= {*wanted}
    assert {squashed(text) for text in said["titles"]} == {*wanted[:2]}
    # A line may be broken where it is long, but nothing is put in.
    for text, name in zip(said["hovered"], wanted, strict=True):
        assert squashed(text) == f"{name},at1:{name}"
    assert said["links"] == []
    assert said["bold"] == 0
    assert seen.page.evaluate("window.canary") is None
    seen.assert_quiet()


TRIED = """async ([away, run]) => {
  const blocked = new Set();
  document.addEventListener("securitypolicyviolation", event => blocked.add(event.effectiveDirective));
  const put = (name, attributes) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (name === "script" && !attributes.src) made.textContent = run;
    document.body.append(made);
    return made;
  };
  put("script", {});
  put("script", { src: away + "/a.js" });
  put("img", { src: "x", onerror: run });
  put("img", { src: away + "/a.png" });
  put("iframe", { src: away });
  put("object", { data: away });
  put("link", { rel: "stylesheet", href: away + "/a.css" });
  put("video", { src: away + "/a.mp4" });
  put("base", { href: away });
  put("form", { action: away }).submit();
  put("a", { href: "javascript:" + run }).click();
  put("style", {}).textContent =
    `@font-face { font-family: away; src: url(${away}/a.woff) } body { font-family: away }`;
  const threw = [];
  for (const [name, tried] of Object.entries({
    // Later: what a test itself evaluates may use eval.
    eval: () => new Promise((done, fail) => setTimeout(() => {
      try { done((0, eval)(run)); } catch (error) { fail(error); }
    })),
    fetch: () => fetch(away),
    beacon: () => { if (!navigator.sendBeacon(away)) throw new Error(); },
    worker: () => new Promise((_, fail) => {
      new Worker(URL.createObjectURL(new Blob([run]))).onerror = () => fail(new Error());
    }),
  })) {
    try { await tried(); } catch { threw.push(name); }
  }
  await new Promise(resolve => setTimeout(resolve, 300));
  return { blocked: [...blocked].sort(), threw: threw.sort(), ran: window.canary };
}"""


def test_the_policy_would_stop_what_got_through(built, visit):
    """Were a text taken for markup after all: no script of its own runs, and nobody is asked."""
    seen = visit(built(power).file)
    asked = []
    seen.page.on("requestfailed", lambda request: asked.append((request.url, request.failure)))
    seen.page.on("response", lambda response: asked.append((response.url, "answered")))
    found = seen.page.evaluate(TRIED, [AWAY, RUN])
    assert found["ran"] is None
    assert found["blocked"] == [
        "base-uri", "connect-src", "font-src", "form-action", "frame-src", "img-src", "media-src", "object-src",
        "script-src", "script-src-attr", "script-src-elem", "style-src-elem", "worker-src",
    ]  # fmt: skip
    assert {"eval", "fetch", "worker"} <= {*found["threw"]}
    assert {why for url, why in asked if url.startswith(AWAY)} == {"csp"}
    assert seen.page.url == seen.url


@pytest.mark.parametrize("make", PAGES)
def test_a_page_names_its_scripts_and_allows_nothing_else(built, parsed, make):
    policy = parsed(built(make).html(built(make).file))["policy"]
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split(";")}
    scripts = rules.pop("script-src")
    assert [one for one in scripts if not re.fullmatch("'sha256-[A-Za-z0-9+/]{43}='", one)] == []
    # Styles are written by the page itself and by plotly; they can ask nobody, because no other rule lets them.
    assert rules == {
        "default-src": ["'none'"], "style-src": ["'unsafe-inline'"], "img-src": ["data:", "blob:"],
        "base-uri": ["'none'"], "form-action": ["'none'"],
    }  # fmt: skip
