"""Trains the weights of measuring/refusal_classifier.py, and says how often they and the rules are right.

    make judge-refusals                      a quarter of a minute
    python recipes/refusal_words.py --check    only the figures, with the weights that are there
    … --instructions CLONE    how often an answer to a harmless instruction is called a refusal, for each model whose
        completions lie in a clone of https://github.com/andyrdt/refusal_direction (Arditi et al. 2024)

It learns from refusal_texts/: answers written for this project in the manner of many models (by_rules.txt has those on
which the rules make no mistake), and answers of SmolLM2-135M, as it is and trained, to our own prompts
(small_model.jsonl, where the rules decide the labels). It also learns from counter-narratives of the starter dialogues
and from our own short lines. It is tested on tests/measuring/refusals_held_out.txt, which it never reads.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, precision_score, recall_score
from sklearn.model_selection import GroupKFold, cross_val_predict

from rewardlm.data.dialogues import load_dialogues
from rewardlm.judges.pair_data import own_exchanges, own_texts
from rewardlm.measuring import refusals
from rewardlm.measuring.refusal_classifier import WEIGHTS, terms

HERE = Path(__file__).parent
TEXTS = HERE / "refusal_texts"
BY_RULES = TEXTS / "by_rules.txt"
HELD_OUT = HERE.parent / "tests" / "measuring" / "refusals_held_out.txt"
KEPT = 8000
STRENGTH = 10.0  # scikit-learn's C


def training_texts() -> tuple[list[str], np.ndarray, list[str]]:
    """Texts, whether each is a refusal, and what was asked: cross-validation must not split answers to one prompt."""
    rows = []
    for path in sorted(TEXTS.glob("*.jsonl")):
        for line in path.read_text("utf-8").splitlines():
            row = json.loads(line)
            truth = refusals.ruling_on(row["text"]) is True if path.stem == "small_model" else row["label"] == "refusal"
            rows.append((row["text"], truth, row["asked"]))
    rows += [(text, truth, text) for text, truth in zip(*written(BY_RULES), strict=True)]
    for name in ("starter", "starter-plain"):
        for dialogue in load_dialogues(name).dialogues:
            rows += [(turn.text, False, dialogue.id) for turn in dialogue.turns if turn.role == "assistant"]
    rows += [(exchange.counter, False, exchange.dialogue_id) for exchange in own_exchanges()]
    ours = own_texts("train")
    rows += [(line, True, line) for line in ours.refusals]
    for lines in (ours.agreements, ours.retorts, ours.objections, ours.chatter, ours.claims, ours.harmless):
        rows += [(line, False, line) for line in lines]
    texts, truths, groups = zip(*rows, strict=True)
    return [refusals.spoken(text) for text in texts], np.array(truths), list(groups)


def fit(texts: Sequence[str], truths: np.ndarray) -> tuple[TfidfVectorizer, LogisticRegression]:
    """Fit twice: the second time on the ``KEPT`` terms that had the largest weights."""
    vectors = TfidfVectorizer(analyzer=terms, sublinear_tf=True, min_df=2)
    first = LogisticRegression(C=STRENGTH, max_iter=3000).fit(vectors.fit_transform(texts), truths)
    largest = np.argsort(-np.abs(first.coef_[0]), kind="stable")[:KEPT]
    kept = sorted(vectors.get_feature_names_out()[largest])
    vectors = TfidfVectorizer(analyzer=terms, sublinear_tf=True, vocabulary=kept)
    return vectors, LogisticRegression(C=STRENGTH, max_iter=3000).fit(vectors.fit_transform(texts), truths)


def write(vectors: TfidfVectorizer, model: LogisticRegression) -> None:
    """Write one line per term: the term, its idf, its weight."""
    rows = zip(vectors.get_feature_names_out(), vectors.idf_, model.coef_[0], strict=True)
    lines = [
        f"(bias)\t1\t{model.intercept_[0]:.4f}",
        *(f"{term}\t{idf:.3f}\t{weight:.3f}" for term, idf, weight in rows),
    ]
    Path(refusals.__file__).with_name(WEIGHTS).write_text("\n".join(lines) + "\n", "utf-8")


def written(path: Path) -> tuple[list[str], np.ndarray]:
    """Answers, and whether each is a refusal."""
    texts, truths = [], []
    for block in path.read_text("utf-8").split("\n### ")[1:]:
        head, answer = block.split("\n", 1)
        texts.append(answer.strip())
        truths.append(head.split("|")[1].strip() == "refusal")
    return texts, np.array(truths)


def said(name: str, truth: np.ndarray, found: Sequence[bool]) -> None:
    """Print a line of the table."""
    print(f"{name:42}{len(truth):6}{precision_score(truth, found):10.3f}{recall_score(truth, found):8.3f}"
          f"{f1_score(truth, found):8.3f}")  # fmt: skip


def to_harmless_instructions(clone: Path) -> None:
    """Print, for each model, how many of its answers are called refusals, and how many of these by their words."""
    found = sorted((clone / "pipeline/runs").glob("*/completions/harmless_baseline_completions.json"))
    if not found:
        raise SystemExit(f"{clone} has no pipeline/runs/*/completions: expected a clone of refusal_direction")
    print("Answers to harmless instructions that are called refusals, and how many of them by their words:")
    for path in found:
        answers = [row["response"] for row in json.loads(path.read_text("utf-8"))]
        called = [answer for answer in answers if refusals.is_refusal(answer)]
        by_words = sum(refusals.ruling_on(answer) is None for answer in called)
        print(f"  {path.parts[-3]:40}{len(called):4} of {len(answers)}{by_words:6}")


def main() -> None:
    """See the module's first lines."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="train nothing")
    parser.add_argument("--instructions", type=Path, metavar="CLONE", help="a clone of refusal_direction")
    asked = parser.parse_args()
    if not asked.check:
        texts, truths, groups = training_texts()
        vectors, model = fit(texts, truths)
        write(vectors, model)
        print(f"{len(texts):,} texts, {truths.sum():,} of them refusals; {len(vectors.vocabulary):,} terms")
        tenths = cross_val_predict(model, vectors.transform(texts), truths, groups=groups, cv=GroupKFold(10))
        print("Ten-fold on the texts that train (the terms were chosen on all of them):")
        said("  by words alone", truths, tenths)
    print(f"{'':42}{'n':>6}{'precision':>10}{'recall':>8}{'F1':>8}")
    texts, truths = written(HELD_OUT)
    said(f"{HELD_OUT.name}: rules alone", truths, [refusals.ruling_on(text) is True for text in texts])
    said(f"{HELD_OUT.name}: rules or words", truths, [refusals.is_refusal(text) for text in texts])
    if asked.instructions:
        to_harmless_instructions(asked.instructions)


if __name__ == "__main__":
    main()
