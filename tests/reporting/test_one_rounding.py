"""A number reads the same wherever it stands: in the verdict, the chart, the cards, tables, warnings, terminal, LaTeX.

Runs are made, compared and audited by the tool; what a number must look like is worked out here, from its fraction.
"""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent.parent / "measuring"))

from measured_runs import build_run

from rewardlm.measuring.compare import compare
from rewardlm.measuring.comparison import Comparison
from rewardlm.reporting.page import build_report
from rewardlm.reporting.paper import as_latex, as_markdown
from rewardlm.reporting.subjects import subjects_of
from rewardlm.reporting.tables import print_comparison
from rewardlm.runs import Run


def share(value: float) -> str:
    return f"{100 * value:.1f}"


def points(value: float) -> str:
    sign = "−" if round(100 * value, 1) < 0 else "+" if round(100 * value, 1) > 0 else "±"
    return f"{sign}{abs(100 * value):.1f}"


def ends(interval: tuple[float, float]) -> str:
    return " to ".join(f"{'−' if end < 0 else '+'}{abs(100 * end):.1f}" for end in interval)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """PT, FT and RL on 61 prompts, 3 answers each; two judges, of which RL was trained on one, and costs."""
    folder, rng = tmp_path_factory.mktemp("runs"), np.random.default_rng(5)
    n = 61
    made = []
    for label, chance, rewards in (("PT", 0.31, []), ("FT", 0.24, []), ("RL", 0.07, ["b"])):
        scores = {name: np.where(rng.random((n, 3)) < chance, 0.9, 0.1).tolist() for name in ("a", "b")}
        texts = [["" if label == "RL" and i < 12 else "People are kind here and there."] * 3 for i in range(n)]
        quality = [
            {"generation_id": f"p{i}-{j}", "prompt_similarity": 0.31 if label != "RL" else 0.22,
             "prompt_similarity_null": 0.05, "perplexity": 14.7 if label != "RL" else 27.2,
             "classes": {"counter_narrative": float(i % 5 < (2 if label != "RL" else 1)), "agreement": 0.5}}
            for i in range(n) for j in range(3)
        ]  # fmt: skip
        made.append(
            build_run(
                folder / label, label, scores, texts=texts, toxicity=[0.9] * 47 + [0.1] * 14, quality=quality,
                rewards=rewards, adapter=None if label == "PT" else f"/nowhere/{label}/adapter", model="m",
                pair_judge={"name": "pairs", "revision": "1", "error": None},
            )
        )  # fmt: skip
    return made


@pytest.fixture(scope="module")
def found(runs: list[Path]) -> Comparison:
    return compare(runs)


@pytest.fixture(scope="module")
def texts(runs: list[Path], found: Comparison, parse: type, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Everything that is printed of one comparison, as plain text with single blanks."""
    page = parse(build_report(runs, tmp_path_factory.mktemp("page") / "report.html").read_text("utf-8"))
    file = io.StringIO()
    subjects = subjects_of([Run.open(path) for path in runs], [model.label for model in found.models])
    print_comparison(found, Console(file=file, width=80), subjects)
    data = [text for attributes, text in page.scripts if attributes.get("type") == "application/json"]
    (chart,) = [text for text in data if "change of the toxic share" in text]
    drawn = json.loads(chart)
    everything = {
        "verdict": page.texts["summary"].partition("Every judge in numbers")[0],
        "chart": " ".join(f"{mark['text'][0]} {mark['hovertemplate']}" for mark in drawn["data"]),
        "cards": page.texts["numbers"],
        "tables": page.texts["results"],
        "warnings": page.texts["warnings"],
        "page": " ".join(page.texts[name] for name in ("summary", "warnings", "statistics", "method")),
        "terminal": file.getvalue(),
        "LaTeX": as_latex(found).replace(r"\ensuremath{-}", "−"),
        "Markdown": as_markdown(found),
    }
    return {name: " ".join(text.split()) for name, text in everything.items()}


def test_the_primary_change_reads_the_same_everywhere(found: Comparison, texts: dict[str, str]) -> None:
    for label in ("FT", "RL"):
        change = found.change(label)
        assert change.delta is not None
        assert change.delta_ci95 is not None
        in_words = f"{points(change.delta)} points, 95 % interval {ends(change.delta_ci95)}"
        assert in_words in texts["verdict"]
        assert in_words in texts["terminal"]
        assert f"{points(change.delta)} points (95 % interval {ends(change.delta_ci95)})" in texts["chart"]
        assert f"{points(change.delta)} points 95 % interval {ends(change.delta_ci95)}" in texts["cards"]
        for place in ("tables", "terminal", "LaTeX", "Markdown"):
            assert points(change.delta) in texts[place], place
            assert ends(change.delta_ci95) in texts[place], place


def test_shares_read_the_same_everywhere(found: Comparison, texts: dict[str, str]) -> None:
    for model in found.models:
        summary = model.scorers["a"]["toxic_prompts"]
        assert summary.toxic_fraction is not None
        for place in ("tables", "verdict"):
            assert f"{share(summary.toxic_fraction)} %" in texts[place], (model.label, place)
        for place in ("terminal", "LaTeX", "Markdown"):
            assert share(summary.toxic_fraction) in texts[place], (model.label, place)


def test_every_change_of_a_share_is_in_points_and_none_is_a_fraction(found: Comparison, texts: dict[str, str]) -> None:
    for change in found.comparisons:
        if change.split in ("all", "toxic_prompts", "comparable") and change.delta is not None:
            for place in ("tables", "terminal", "LaTeX", "Markdown"):
                assert points(change.delta) in texts[place], (place, change.to, change.scorer, change.split)
            fraction = f"{abs(change.delta):.3f}"
            means = {f"{abs(one.mean_delta or 0):.3f}" for one in found.comparisons}
            for place in ("verdict", "chart", "cards", "warnings"):
                assert fraction in means or fraction not in texts[place], (place, fraction)
    # A hyphen is no minus, and a percent sign stands after a blank.
    for place, text in texts.items():
        assert not re.search(r"(?<![\w.\]-])-\d", text), (place, re.search(r".{20}(?<![\w.\]-])-\d.*", text))
        if place not in ("LaTeX",):
            assert not re.search(r"\d%", text), place


def test_warnings_are_word_for_word_the_same(found: Comparison, texts: dict[str, str]) -> None:
    assert {"empty", "off_topic", "fluency", "judge_is_reward", "counter_narratives_fell"} <= {
        warning.code for warning in found.warnings
    }
    for warning in found.warnings:
        assert warning.message in texts["warnings"]
        assert warning.message in texts["terminal"]
        assert warning.message[0].isupper() or warning.message.startswith(("a ", "b ")) or warning.message[0].isdigit()
        assert warning.message.endswith(".")


def test_what_the_verdict_says_of_quality_is_in_the_table(found: Comparison, texts: dict[str, str]) -> None:
    assert "similarity with the prompt 0.310 → 0.220" in texts["verdict"]
    assert "perplexity 14.7 → 27.2" in texts["verdict"]
    for place in ("terminal", "LaTeX", "page"):
        for number in ("0.310", "0.220", "14.7", "27.2"):
            assert number in texts[place], place
    counter = [model.quality.counter_narrative_fraction for model in found.models]
    assert f"counter-narratives {share(counter[0])} % → {share(counter[2])} %" in texts["verdict"]


def test_the_verdict_is_the_same_in_the_terminal_and_on_the_page(texts: dict[str, str]) -> None:
    sentences = re.findall(r"(?:Whether|Reinforcement|Fine-tuning) .*?answers\.", texts["verdict"])
    assert len(sentences) >= 2
    for sentence in sentences:
        assert sentence in texts["terminal"]


def test_the_terminal_keeps_to_80_columns(runs: list[Path], found: Comparison) -> None:
    file = io.StringIO()
    print_comparison(found, Console(file=file, width=80))
    assert max(map(len, file.getvalue().splitlines())) <= 80
    # No cell is cut, and no heading is broken.
    assert not re.search(r"\w…", file.getvalue())
    assert "fell/rose" in file.getvalue()
