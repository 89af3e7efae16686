"""Which label serves which attribute: what the documentation says is what the code does, and nothing is invented."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewardlm.errors import ConfigError
from rewardlm.judges.settings import JudgeServeSettings
from rewardlm.scoring.lexical import LexicalScorer
from rewardlm.scoring.lstm import LstmScorer
from rewardlm.scoring.record import record_of
from rewardlm.serving.served import ATTRIBUTES, attributes_of, check_labels

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text("utf-8")
LABELS: dict[str, tuple[str, ...]] = {
    "lexical": LexicalScorer.labels,
    "lexical2": LstmScorer.labels,
    "toxicity+hate": ("toxicity", "starter", "starter#hate"),
    **{
        name: record.labels
        for name in ("starter", "starter-large", "witness")
        if (record := record_of(name)) is not None
    },
}


def documented() -> dict[str, dict[str, str]]:
    """The table of docs/serving.md: attributes and labels by judge."""
    section = PAGE.split("## Which attributes a judge has")[1].split("\n## ")[0]
    rows = [
        [cell.strip().replace("`", "") for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith("|")
    ]
    head, _, *body = rows
    found: dict[str, dict[str, str]] = {}
    for column, names in enumerate(head):
        for name in names.split(", ") if column else ():
            found[name] = {row[0]: row[column] for row in body if row[column] != "–"}
    return found


def test_the_table_of_the_documentation_is_what_is_served() -> None:
    assert documented() == {name: attributes_of(labels, {}) for name, labels in LABELS.items()}


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"), {
            "TOXICITY": "toxic", "SEVERE_TOXICITY": "severe_toxic", "PROFANITY": "obscene", "OBSCENE": "obscene",
            "THREAT": "threat", "INSULT": "insult", "IDENTITY_ATTACK": "identity_hate",
        }),
        (("Toxicity",), {"TOXICITY": "Toxicity"}),
        (("hate", "offensive", "neutral", "not_toxic", "non-toxic", "LABEL_1"), {}),
        (("toxicity", "toxic"), {"TOXICITY": "toxicity"}),
    ],
)  # fmt: skip
def test_only_labels_that_mean_the_same_serve(labels: tuple[str, ...], expected: dict[str, str]) -> None:
    assert attributes_of(labels, {}) == expected


def test_a_declaration_wins_and_helps_only_judges_with_that_label() -> None:
    declared = {"TOXICITY": "hate", "SPAM": "junk"}
    assert attributes_of(("toxicity", "hate"), declared) == {"TOXICITY": "hate"}
    assert attributes_of(("toxicity", "junk"), declared) == {"TOXICITY": "toxicity", "SPAM": "junk"}


def test_no_label_stands_for_two_notions_but_obscene() -> None:
    """Perspective has PROFANITY and, from another source of texts, OBSCENE."""
    names = [name for found in ATTRIBUTES.values() for name in found]
    assert {name for name in names if names.count(name) > 1} == {"obscene"}


def test_a_label_that_no_judge_has_is_told_before_anything_is_loaded() -> None:
    with pytest.raises(ConfigError, match=r"attributes.TOXICITY: .*label 'hat': did you mean 'hate'"):
        check_labels(JudgeServeSettings(judge=["starter"], attributes={"TOXICITY": "hat"}))
    with pytest.raises(ConfigError, match=r"label_thresholds.insults: "):
        check_labels(JudgeServeSettings(judge=["starter"], label_thresholds={"insults": 0.5}))
    check_labels(
        JudgeServeSettings(judge=["starter"], label_thresholds={"insult": 0.5}, attributes={"TOXICITY": "hate"})
    )
