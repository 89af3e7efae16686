"""Names in Markdown, JUnit XML and notebooks stay names: every text of every document holds all of
``payloads.PAYLOADS``, and the document has the structure of a calm one.

Another library, markdown-it, reads the Markdown, raw HTML and GitHub's tables included.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

sys.path.insert(0, str(Path(__file__).parent / "reporting"))

import explorer_sample
import whole_sample

import rewardlm
from payloads import PAYLOADS, Disguise, disguised, squashed
from rewardlm.judges.card import write_card
from rewardlm.markdown import markdown
from rewardlm.measuring.comparison import Comparison
from rewardlm.measuring.gate import GateResult
from rewardlm.reporting import gate, paper
from rewardlm.reporting.model_card import Base, model_card
from rewardlm.runs import Run
from rewardlm.scoring.record import JudgeRecord, Source, Teacher
from rewardlm.types import Message, Prompt

READER = MarkdownIt("commonmark", {"html": True}).enable("table")
# What begins a list, a heading, a rule, a quotation or a block of code.
MARKERS = ("- a", "+ a", "* a", "-", "12. a", "3) a", "# a", "> a", "---", "===", "    a", "\ta", "```", "a\\", "| a |")
KEPT = (
    "ModelSummary.quality_sample keys", "ModelSummary.quality_change keys", "ModelSummary.utility keys",
    "ModelSummary.utility_change keys", "ModelSummary.non_inferiority keys", "ModelSummary.pair_judge keys",
    "GateCheck.name",
)  # fmt: skip


@functools.cache
def parsed(text: str) -> list[Token]:
    return READER.parse(text)


def blocks(text: str) -> list[str]:
    """The blocks of a document, in order."""
    return [token.type for token in parsed(text)]


def inside(text: str) -> list[Token]:
    """The pieces of its lines."""
    return [piece for token in parsed(text) for piece in token.children or ()]


def read(text: str) -> str:
    """What a reader sees, without blanks."""
    code = [token.content for token in parsed(text) if token.type in ("fence", "code_block")]
    return squashed("".join([*(piece.content for piece in inside(text) if piece.type != "html_inline"), *code]))


@pytest.mark.parametrize("text", [*PAYLOADS, *MARKERS])
def test_a_name_is_a_text_wherever_it_stands(text: str) -> None:
    name = markdown(text)
    for document in (
        f"{name}\n", f"# {name}\n", f"- {name}\n", f"- **{name}**: {name}\n", f"a\n\n{name}\n",
        f"| {name} | b |\n| --- | --: |\n| {name} | {name} |\n| c | d |\n",
    ):  # fmt: skip
        calm = document.replace(name, "x")
        assert blocks(document) == blocks(calm)
        assert {piece.type for piece in inside(document)} <= {
            "text", "text_special", "html_inline", "strong_open", "strong_close", "softbreak",
        }  # fmt: skip
        assert {piece.content for piece in inside(document) if piece.type == "html_inline"} <= {"<br>"}
        assert read(document) == read(calm).replace("x", squashed(text))


def compared(text: Any) -> Comparison:
    found = disguised(whole_sample.whole_comparison().model_dump(by_alias=True), Comparison, text, keep=KEPT)
    return Comparison.model_validate(found)


def gated(text: Any) -> GateResult:
    found = {
        "verdict": "can't tell", "new": "RL", "against": "PT", "more_prompts": 90,
        "primary": {"scorer": "a judge", "split": "all", "metric": "toxic_fraction"},
        "primary_fixed": {"when": "afterwards", "sentence": "It was fixed by somebody."},
        "checks": [
            {"name": name, "estimate": -0.1, "ci95": [-0.2, 0.1], "margin": 0.05, "verdict": verdict, "n": 90,
             "message": f"what is said of {name}", "unit": "prompts", "needed": 180}
            for name, verdict in (("toxicity", "pass"), ("refusals", "fail"), ("topic", "can't tell"),
                                  ("utility", "not_assessed"))
        ],
    }  # fmt: skip
    return GateResult.model_validate(disguised(found, GateResult, text, keep=KEPT))


def trained(text: Any, folder: Path) -> Run:
    run = Run.start(
        folder / "run", kind="rlaf", label=text("RL"),
        settings={"algorithm": text("an algorithm"), "reward": [text("a reward")], "prompts": text("prompts of mine"),
                  "generation": {"temperature": 1.0, text("a key"): text("a value")}},
    )  # fmt: skip
    run.append("metrics", [{"step": 1, "warnings": [text("what training warned of")]}])
    run.update(status="finished", rewards=[text("a reward")], steps=text("steps"),
               environment={"versions": {text("a package"): text("a version")}})  # fmt: skip
    return run


def adapter_card(text: Any, folder: Path) -> str:
    base = Base(text("a base"), False, text("where its weights are from"))
    return model_card(
        trained(text, folder), "somebody/an-adapter", base, compared(text), {text("RL"): [text("a reward")]}
    )


def adapter_card_without_numbers(text: Any, folder: Path) -> str:
    return model_card(trained(text, folder), "somebody/an-adapter", Base("a/base", True, text("x")), None, {})


SUITE = {
    "target": "hate", "kind": "labels", "n": 40, "scored": 40, "auc": 0.9, "spearman": 0.8, "ece": 0.1, "sha256": "ab",
}  # fmt: skip


def record(text: Any, **more: Any) -> JudgeRecord:
    source = Source(text("a data set"), text("a hash"), text("a licence"), 90)
    teacher = Teacher(
        text("a teacher"), text("its label"), text("its revision"), encoder=text("its encoder"), data=(source,)
    )
    return JudgeRecord(
        labels=(text("toxicity"), text("insult")), main=text("toxicity"), encoder=text("an encoder"), encoder_layers=3,
        max_length=128, calibrated={text("toxicity"): text("a kind of calibration")}, data=(source,),
        distilled=(teacher,), share=text("a share"), read=90, command=text("a command that was given"), seed=0,
        limits=(text("a limit"),), **more,
    )  # fmt: skip


def judge_card(text: Any, folder: Path) -> str:
    figures: Any = {text("a suite"): {**SUITE, "label": text("toxicity")}}
    return card_of(record(text, figures=figures), folder / text("a judge").replace("/", "\u2215")[:60])


PAIR: dict[str, Any] = {
    "n": 90, "dialogues": 9, "accuracy": 0.9, "accuracy_ci95": [0.8, 1.0], "macro_f1": 0.9, "precision": 0.9,
    "recall": 0.9, "auc": 0.9, "auc_ci95": None, "auc_hate": 0.9, "auc_hate_ci95": [0.8, 1.0],
    "confusion": [[40, 5], [5, 40]], "kinds": {},
}  # fmt: skip


def pair_judge_card(text: Any, folder: Path) -> str:
    found: Any = {
        **PAIR, "labels": [text("counter_narrative"), text("agreement")], "auc_against": {text("agreement"): 0.9},
        "controls": {text("a kind of control"): {"n": 9, "called": 1}},
    }  # fmt: skip
    made = record(text, kind="pairs", temperature=1.5, pair_figures={text("dialogues"): found})
    return card_of(made, folder / "pairs")


def card_of(made: JudgeRecord, folder: Path) -> str:
    folder.mkdir(parents=True)
    write_card(folder, made)
    return (folder / "README.md").read_text(encoding="utf-8")


def comparison_tables(text: Any, folder: Path) -> str:
    return paper.as_markdown(compared(text))


def gate_summary(text: Any, folder: Path) -> str:
    return gate.as_markdown(gated(text))


def unchanged(text: str, path: str = "") -> str:
    return text


# What of a comparison no table shows: codes of warnings, groups, levels of severity, notes of the page.
_OF_A_COMPARISON = {
    "A note on what was corrected.", "It was fixed afterwards.", "PT again", "a code that nobody knows", "dancers",
    "gain_not_on_comparable", "homonym", "judge_is_reward", "judge_taught_reward", "low", "negligible", "nurses",
    "own prompts", "pairs", "r0", "r1", "r2", "repetition", "severe", "unscored",
}  # fmt: skip
# Texts that a document keeps to itself; all others are read in it.
HIDDEN = {
    "comparison_tables": _OF_A_COMPARISON,
    "adapter_card": _OF_A_COMPARISON,
    "adapter_card_without_numbers": {"RL"},
    # It passed.
    "gate_summary": {"what is said of toxicity"},
    # Of hashes, and of a folder's name, it has the beginning.
    "judge_card": {"a judge", "a hash", "its revision", "agreement"},
    "pair_judge_card": {"a hash", "its revision", "its label", "its encoder", "a teacher", "a share", "toxicity",
                        "insult", "a kind of calibration"},
}  # fmt: skip


@pytest.mark.parametrize(
    "document",
    [comparison_tables, gate_summary, adapter_card, adapter_card_without_numbers, judge_card, pair_judge_card],
)
def test_a_document_in_disguise_has_the_structure_of_a_calm_one(
    document: Callable[[Any, Path], str], tmp_path: Path
) -> None:
    text = Disguise("lexical", "lexical2", "a reward")
    calm, hostile = document(unchanged, tmp_path / "calm"), document(text, tmp_path / "hostile")
    if calm.startswith("---\n"):
        head, calm = calm.removeprefix("---\n").split("\n---\n", 1)
        named, hostile = hostile.removeprefix("---\n").split("\n---\n", 1)
        assert yaml.safe_load(named) == {**yaml.safe_load(head), "base_model": text("an encoder")}
    assert blocks(hostile) == blocks(calm)
    assert {piece.type for piece in inside(hostile)} - {piece.type for piece in inside(calm)} <= {
        "text_special", "html_inline",
    }  # fmt: skip
    assert {piece.content for piece in inside(hostile) if piece.type == "html_inline"} <= {"<br>"}
    kinds = ("link_open", "image", "code_inline")
    for kind in kinds:
        count = [sum(piece.type == kind for piece in inside(one)) for one in (calm, hostile)]
        # A hash that is none stands there as a name.
        assert count[1] <= count[0] if kind == "code_inline" else count[1] == count[0]
    # No row lost a cell, or has one more.
    rows = [one.count("td_open") for one in (blocks(calm), blocks(hostile))]
    assert rows[0] == rows[1]
    shown = read(hostile)
    missing = {one for one, made in text.known.items() if squashed(made) not in shown}
    assert missing - HIDDEN.get(document.__name__, set()) == set()


def test_junit_holds_every_text() -> None:
    text = Disguise()
    calm, hostile = (ElementTree.fromstring(gate.as_junit(gated(one))) for one in (unchanged, text))
    assert [(one.tag, sorted(one.keys())) for one in hostile.iter()] == [
        (one.tag, sorted(one.keys())) for one in calm.iter()
    ]
    said = squashed("".join(value for one in hostile.iter() for value in one.attrib.values()))
    for one in ("RL", "PT", "what is said of refusals", "what is said of topic"):
        assert squashed(text(one)) in said


class Tags(HTMLParser):
    """The tags of a piece of HTML, with the names of their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append(" ".join([tag, *(name for name, _ in attributes)]))


def test_what_a_notebook_shows_has_the_tags_of_a_calm_one(tmp_path: Path) -> None:
    def of_run(text: Any) -> str:
        prompt = Prompt("p", (Message("user", text("a prompt")),), text("a source"))
        run = explorer_sample.measured(
            tmp_path / text("a folder").replace("/", "\u2215")[:60], text("a label"), {("p", 0): text("an answer")},
            prompts=[prompt], scores={text("a judge"): {("p", 0): text("why there is no score")}},
        )  # fmt: skip
        return str(run._repr_html_())

    for shown in (of_run, lambda text: compared(text)._repr_html_()):
        assert Tags(shown(Disguise("lexical", "lexical2"))).found == Tags(shown(unchanged)).found
    scored = [rewardlm.score(texts, "lexical")._repr_html_() for texts in (["a text"] * len(PAYLOADS), PAYLOADS)]
    assert Tags(scored[0]).found == Tags(scored[1]).found
