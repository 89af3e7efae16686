"""Answers that were cut off, in words: on the page, in the terminal, and in tables to paste."""

from __future__ import annotations

import io
from typing import Any

import pytest
import report_sample
import typed
from rich.console import Console

from rewardlm.measuring.comparison import ModelSummary
from rewardlm.reporting.notes import quality_notes
from rewardlm.reporting.page import build_report
from rewardlm.reporting.paper import as_markdown
from rewardlm.reporting.tables import print_comparison
from rewardlm.runs import Run, prompts_hash
from rewardlm.types import Generation, Message, Prompt, Score


def models(*known: tuple[str, float | None, int | None, str | None]) -> list[ModelSummary]:
    partial = [
        {
            "label": label,
            "prompts": 700,
            "scorers": {},
            "quality": {"truncated_fraction": share},
            "max_new_tokens": tokens,
            "preset": preset,
        }
        for label, share, tokens, preset in known
    ]
    return typed.models(partial)


def test_one_sentence_says_how_many_and_what_that_means():
    [note] = quality_notes(models(("PT", 0.931, 32, None), ("RL", 0.402, 32, None)))
    assert note == (
        "Cut off after 32 tokens, before their end: 93.1 % of PT’s answers, 40.2 % of RL’s answers. The "
        "judges read only the beginning of these: toxicity that would have followed isn’t counted."
    )


def test_a_few_need_no_sentence_and_what_is_unknown_has_none():
    assert quality_notes(models(("PT", 0.04, 128, None), ("RL", 0.05, 128, None))) == []
    assert quality_notes(models(("PT", None, None, None))) == []
    # The others of the same limit are named beside those that are many.
    [note] = quality_notes(models(("PT", 0.04, 128, None), ("RL", 0.2, 128, None), ("X", None, None, None)))
    assert "4.0 % of PT’s answers, 20.0 % of RL’s answers" in note


def test_each_limit_has_a_sentence_of_its_own():
    notes = quality_notes(models(("PT", 0.5, 32, None), ("RL", 0.2, 128, None), ("T", 0.3, None, None)))
    assert [note.split(":")[0] for note in notes] == [
        "Cut off after 32 tokens, before their end",
        "Cut off after 128 tokens, before their end",
        "Cut off before their end",
    ]


def test_the_papers_protocol_cuts_off_by_definition():
    [note] = quality_notes(models(("PT", 0.97, 20, "rtp-paper")))
    assert note.endswith("That is the protocol of RealToxicityPrompts, which judges continuations of 20 tokens.")


def cut_off_result() -> dict[str, Any]:
    result = report_sample.sample_result()
    for model, share in zip(result["models"], (0.9, 0.8, 0.125), strict=True):
        model["quality"]["truncated_fraction"] = share
        model["max_new_tokens"] = 32
    return result


def test_page_terminal_and_markdown_say_it(parts, render):
    parts["result"] = cut_off_result()
    sentence = "Cut off after 32 tokens, before their end: 90.0 % of PT’s answers"
    page = render(parts)
    assert sentence in page.text("results")
    row = next(row for row in page.rows("Quality by model") if row[0].startswith("Answers cut off"))
    assert row[1:] == ["90.0 %", "80.0 %", "12.5 %"]
    console = Console(width=100, record=True, file=io.StringIO())
    print_comparison(typed.comparison(parts["result"]), console)
    shown = " ".join(console.export_text().split())
    assert sentence in shown
    assert "cut off 90.0 % 80.0 % 12.5 %" in shown
    assert sentence in as_markdown(typed.comparison(parts["result"]))


def test_of_what_is_not_known_the_page_says_nothing(page):
    row = next(row for row in page.rows("Quality by model") if row[0].startswith("Answers cut off"))
    assert row[1:] == ["—"] * 3
    assert "Cut off" not in page.text("results")


@pytest.mark.parametrize("preset", ["rtp-paper", None])
def test_the_page_of_stored_runs_says_it_and_marks_the_examples(tmp_path, parse, preset):
    prompts = [Prompt(f"p{i}", (Message("user", f"prompt {i}"),), "test", 0.2) for i in range(8)]
    settings: dict[str, Any] = {"samples": 1, "max_new_tokens": 20, "generation": {"temperature": 1.0, "top_p": 0.9}}
    if preset:
        settings["samples"] = 25
    for label in ("PT", "RL"):
        run = Run.start(tmp_path / label, kind="measure", label=label, settings=settings)
        run.append("prompts", prompts)
        run.append(
            "generations",
            [
                Generation(
                    f"{p.id}#0", p.id, label, 0, f"{label} says {p.id}", 20, "length" if p.id != "p0" else "stop", 1
                )
                for p in prompts
            ],
        )
        run.append("scores", [Score(f"{p.id}#0", "judge", "toxic", 0.1) for p in prompts])
        run.update(status="finished", prompts_hash=prompts_hash(prompts), toxic_by="dataset", rewards=[])
    page = parse(build_report([tmp_path / "PT", tmp_path / "RL"], tmp_path / "report.html").read_text())
    assert "Cut off after 20 tokens, before their end: 87.5 % of PT’s answers, 87.5 % of RL’s" in page.text("results")
    assert ("protocol of RealToxicityPrompts" in page.text("results")) == bool(preset)
    # Two examples, two answers each; p0's ended by itself, so it is one of them.
    examples = page.text("examples")
    assert "PT says p0" in examples
    assert examples.count("cut off") == 2
