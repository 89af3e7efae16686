"""What a judge of pairs gets right on exchanges that it never saw.

Every exchange gives one pair of each class, so chance is 25 % and the classes weigh alike. Refusals, phrases of
agreement, abuse and chatter are our own held-out lines. Counter-narratives, hateful turns and answers to others come
from the data set. The most telling figure is ``auc_hate``: its counter-narratives against its other hateful turns.

Controls are evaluated too: the same answers under prompts that they don't oppose. The share of them that is called a
counter-narrative shows how far tone alone gets an answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rewardlm.data.dialogues import load_dialogues
from rewardlm.judges.metrics import auc
from rewardlm.judges.pair_data import Exchange, PairExample, controls, draw, exchanges, own_texts, permuted
from rewardlm.judges.settings import PairEvaluateSettings
from rewardlm.models.load import resolve_device
from rewardlm.scoring.pairs import COUNTER_NARRATIVE, PAIR_LABELS, PairJudge, load_pair_judge, most_likely
from rewardlm.scoring.record import Counted, PairFigures
from rewardlm.stats import BoolArray, FloatArray, bootstrap_ci95

RESAMPLES = 1000


def evaluate_on(settings: PairEvaluateSettings) -> PairFigures:
    """Figures of ``evaluate_pairs`` on dialogues and our held-out lines.

    Raises ScorerError for a judge that can't be loaded, and DataError for dialogues that can't be read.
    """
    judge = load_pair_judge(settings.judge, device=str(resolve_device(settings.device)))
    found = exchanges(load_dialogues(settings.dialogues).dialogues)
    if settings.limit is not None and settings.limit < len(found):
        found = random.Random(settings.seed).sample(found, settings.limit)
    ours = own_texts("held_out")
    return evaluate_pairs(
        judge, draw(found, ours, "held out"), held_out_controls(found, settings.seed), seed=settings.seed
    )


def held_out_controls(found: Sequence[Exchange], seed: int) -> list[PairExample]:
    """Controls from held-out exchanges: each answer under another dialogue's prompt, and under two other prompts."""
    return [*permuted(found, seed), *controls(found, own_texts("held_out"), "held out", 2)]


def evaluate_pairs(
    judge: PairJudge, examples: Sequence[PairExample], tests: Sequence[PairExample] = (), *, seed: int = 0
) -> PairFigures:
    """Figures of ``judge`` on ``examples``, none of which has an empty answer, and on the controls ``tests``.

    ``auc`` is that of P(counter_narrative) against the rest, ``auc_against`` against one other class, ``auc_hate`` the
    data set's counter-narratives against its hateful turns; their intervals are 95 % percentile bootstraps over
    dialogues (1,000 resamples). For ``precision`` and ``recall``, a pair is found if counter_narrative is its likeliest
    class. ``confusion`` is Int[true, found] in the order of ``labels``; ``kinds`` counts the classes found by kind of
    pair. ``controls`` holds, for each kind of control, how many there are (``n``) and how many are called
    counter-narratives (``called``).
    """
    verdicts = judge.judge([(example.prompt, example.answer) for example in examples])
    probabilities = np.array([[(verdict or {})[label] for label in PAIR_LABELS] for verdict in verdicts])
    found = probabilities.argmax(1)
    truth = np.array([PAIR_LABELS.index(example.label) for example in examples])
    confusion = np.zeros((len(PAIR_LABELS), len(PAIR_LABELS)), int)
    np.add.at(confusion, (truth, found), 1)
    counter = PAIR_LABELS.index(COUNTER_NARRATIVE)
    scores, positive = probabilities[:, counter], truth == counter
    kinds = np.array([example.kind for example in examples])
    from_data = np.isin(kinds, ("counter-narrative", "hateful turn"))
    dialogues = np.array([example.dialogue_id for example in examples])
    correct = np.diag(confusion)
    support, called = confusion.sum(1), confusion.sum(0)
    return {
        "n": len(examples),
        "dialogues": len(set(dialogues)),
        "accuracy": float(correct.sum() / len(examples)),
        "accuracy_ci95": _interval(lambda rows: float((truth == found)[rows].mean()), dialogues, seed),
        "macro_f1": float(np.mean(2 * correct / np.maximum(support + called, 1))),
        "precision": float(correct[counter] / called[counter]) if called[counter] else None,
        "recall": float(correct[counter] / support[counter]) if support[counter] else None,
        "auc": auc(scores, positive),
        "auc_ci95": _interval(lambda rows: auc(scores[rows], positive[rows]), dialogues, seed),
        "auc_against": {
            label: _auc_of(scores, positive, positive | (truth == number))
            for number, label in enumerate(PAIR_LABELS)
            if number != counter
        },
        "auc_hate": _auc_of(scores, positive, from_data),
        "auc_hate_ci95": _interval(
            lambda rows: auc(scores[rows][from_data[rows]], positive[rows][from_data[rows]]), dialogues, seed
        ),
        "labels": list(PAIR_LABELS),
        "confusion": confusion.tolist(),
        "kinds": {
            str(kind): {label: int((found[kinds == kind] == number).sum()) for number, label in enumerate(PAIR_LABELS)}
            for kind in dict.fromkeys(kinds)
        },
        "controls": _called(judge, tests),
    }


def _called(judge: PairJudge, tests: Sequence[PairExample]) -> dict[str, Counted]:
    verdicts = judge.judge([(test.prompt, test.answer) for test in tests])
    found: dict[str, Counted] = {}
    for test, verdict in zip(tests, verdicts, strict=True):
        counted = found.setdefault(test.kind, {"n": 0, "called": 0})
        counted["n"] += 1
        counted["called"] += verdict is not None and most_likely(verdict) == COUNTER_NARRATIVE
    return found


def _auc_of(scores: FloatArray, positive: BoolArray, among: BoolArray) -> float | None:
    return auc(scores[among], positive[among])


def _interval(statistic: Callable[[Any], float | None], dialogues: Any, seed: int) -> list[float] | None:
    """Over dialogues: pairs made of one dialogue are not independent."""
    interval = bootstrap_ci95(statistic, dialogues, n_resamples=RESAMPLES, seed=seed)
    return None if interval is None else list(interval)
