"""The figures of a judge on a suite, typed and computed from its scores.

``measure_judge`` turns scores into a ``JudgeResult``, the object that ``judge evaluate --json`` prints, runs store and
the page shows; ``compare_judges`` says where two judges disagree. The numbers themselves are in ``metrics``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypedDict

from rewardlm.errors import RunError
from rewardlm.judges.metrics import (
    BINS,
    POWER,
    THRESHOLD,
    BiasAucs,
    Bin,
    Confusion,
    at_threshold,
    auc,
    auc_interval95,
    average_precision,
    bias_aucs,
    brier,
    confusion,
    expected_calibration_error,
    is_at_chance,
    pearson,
    power_mean,
    reliability,
    roc,
    spearman,
    spearman_interval95,
)
from rewardlm.judges.suites import COUNTER_SPEECH, FUNCTIONALITIES, TURNS, Suite, groups_in
from rewardlm.runs import Run
from rewardlm.scoring.record import Speed, SuiteFigures, TextFigures, all_sources, record_of
from rewardlm.scoring.scorer import EMPTY, Scorer, cuts
from rewardlm.stats import BoolArray, FloatArray
from rewardlm.typed import mistake
from rewardlm.types import Verdict

# A group needs at least this many texts of each class for its bias AUCs to say anything.
SMALLEST_GROUP = 10


class KindOfTest(TypedDict):
    """A judge on one kind of test. ``gold`` is the true class of its texts, "both" where they have both."""

    what: str
    gold: str
    n: int
    accuracy: float | None
    mean_score: float
    auc: float | None


class Target(TypedDict):
    """A judge on the texts that are about one group."""

    n: int
    positives: int
    accuracy: float | None
    false_positive_rate: float | None
    false_negative_rate: float | None
    auc: float | None


class GroupSize(TypedDict):
    """How many texts are about a group, and how many of them are positives."""

    n: int
    positives: int


class GroupBias(GroupSize, BiasAucs):
    """The bias AUCs of one group, and how many texts they are from."""


class Bias(TypedDict):
    """Bias AUCs by group, found by the suite or by words; groups with few texts of a class are only counted."""

    groups_by: Literal["suite", "words"]
    smallest_group: int
    groups: dict[str, GroupBias]
    too_small: dict[str, GroupSize]
    power: float
    power_mean: BiasAucs


class CounterKind(TypedDict):
    """How many texts oppose hate in one way, and the share of them that is called hate."""

    what: str
    n: int
    false_positive_rate: float


class CounterSpeech(TypedDict):
    """How many texts that oppose hate are called hate, overall and by how they do it; AUC against all hate."""

    n: int
    false_positives: int
    false_positive_rate: float
    auc_against_hate: float | None
    by: dict[str, CounterKind]


class JudgeResult(SuiteFigures):
    """All figures of a judge on a suite; None where one doesn't apply.

    ``target`` is the suite's label that the judge's ``label`` is compared with. ``n`` texts have that label, the judge
    scored ``scored`` of them, and ``cut`` of these it read only in part, because they are long. A soft target above 0.5
    is a positive. ``by_functionality`` and ``by_target`` are there where the suite says what its texts test and whom
    they are about; ``bias`` holds the AUCs of Borkan et al. 2019 by group, found by words where the suite doesn't say.
    """

    judge: str
    suite: str
    unscored: dict[str, int]
    cut: int
    positives: int
    dropped: dict[str, int]
    threshold: float
    at_chance: bool | None
    pearson: float | None
    ece_bins: int
    precision: float | None
    recall: float | None
    by_functionality: dict[str, KindOfTest] | None
    by_target: dict[str, Target] | None
    bias: Bias | None
    counter_speech: CounterSpeech | None
    reliability: list[Bin]
    roc: list[tuple[float, float]] | None
    texts_per_second: float | None
    speed: Speed | None
    trained_on_this_file: bool


class JudgePair(Confusion):
    """Two judges, by their labels, on the texts of a suite that both scored."""

    suite: str
    judges: list[str]
    labels: list[str]
    threshold: float


class Evaluation(TypedDict):
    """What ``judge evaluate`` found: every judge on every suite, and every two judges on each."""

    results: list[JudgeResult]
    confusion: list[JudgePair]


def read_results(run: Run) -> Evaluation:
    """What ``judge evaluate`` wrote into a run. Raises RunError for what was changed by hand."""

    def checked(kind: Any, found: Any, where: str) -> Any:
        if (wrong := mistake(kind, found)) is not None:
            raise RunError(f"{run.path}/{where}: {wrong}; the file was changed by hand: put it back, or evaluate again")
        return found

    confusion = checked(list[JudgePair], run.meta.get("confusion", []), "run.json, confusion")
    for table in confusion:
        if [len(row) for row in table["table"]] != [2, 2] or len(table["judges"]) != 2 or len(table["labels"]) != 2:
            raise RunError(f"{run.path}/run.json, confusion: expected two judges and a table of two by two")
    results = [
        checked(JudgeResult, record, f"results.jsonl, line {number}")
        for number, record in enumerate(run.read("results"), 1)
    ]
    return {"results": cast(list[JudgeResult], results), "confusion": cast(list[JudgePair], confusion)}


def measure_judge(
    scorer: Scorer,
    suite: Suite,
    label: str,
    verdicts: Sequence[Verdict],
    *,
    seed: int,
    n_resamples: int,
    speed: Speed | None,
) -> JudgeResult:
    """All figures of ``scorer`` on ``suite``, from its ``verdicts`` on the suite's texts, which hold ``label``."""
    target = suite.target_of(label)
    targets = suite.targets(target)
    judged = ~np.isnan(targets)
    scores = np.array([verdict.values.get(label, np.nan) for verdict in verdicts], dtype=np.float64)
    kept = judged & ~np.isnan(scores)
    s, t = scores[kept], targets[kept]
    positive = t > THRESHOLD
    texts = [text for text, keep in zip(suite.texts, kept, strict=True) if keep]
    kinds = np.array([text.functionality or "" for text in texts], dtype=np.str_)
    groups = [text.groups if suite.says_groups else groups_in(text.text) for text in texts]
    shares = at_threshold(s, positive)
    area = auc(s, positive)
    interval = auc_interval95(s, positive, n_resamples=n_resamples, seed=seed)
    result: JudgeResult = {
        "judge": scorer.name,
        "suite": suite.name,
        "label": label,
        "target": target,
        "kind": "labels" if bool(np.isin(targets[judged], (0, 1)).all()) else "scores",
        "n": int(judged.sum()),
        "scored": int(kept.sum()),
        "unscored": _unscored(verdict for verdict, is_judged in zip(verdicts, judged, strict=True) if is_judged),
        "cut": sum(cuts(scorer, [text.text for text in texts])),
        "positives": int(positive.sum()),
        "dropped": {**suite.dropped, **({f"no {target}": int((~judged).sum())} if not judged.all() else {})},
        "threshold": THRESHOLD,
        "auc": area,
        "auc_ci95": interval,
        "at_chance": is_at_chance(area, interval),
        "average_precision": average_precision(s, positive),
        "spearman": spearman(s, t),
        "spearman_ci95": spearman_interval95(s, t, n_resamples=n_resamples, seed=seed),
        "pearson": pearson(s, t),
        "ece": expected_calibration_error(s, t),
        "ece_bins": BINS,
        "brier": brier(s, t),
        "accuracy": shares.accuracy,
        "precision": shares.precision,
        "recall": shares.recall,
        "f1": shares.f1,
        "false_positive_rate": shares.false_positive_rate,
        "false_negative_rate": shares.false_negative_rate,
        "by_functionality": _by_functionality(s, positive, kinds, suite.about_hate),
        "by_target": _by_target(s, positive, groups) if suite.says_groups else None,
        "bias": _bias(s, positive, groups, "suite" if suite.says_groups else "words"),
        "counter_speech": _counter_speech(s, positive, kinds),
        "reliability": reliability(s, t),
        "roc": roc(s, positive),
        "texts_per_second": speed["texts_per_second"] if speed else None,
        "speed": speed,
        "trained_on_this_file": not suite.held_out and suite.sha256 in training_files(scorer.name),
        "sha256": suite.sha256,
        "revision": getattr(scorer, "revision", None),
    }
    json.dumps(result, allow_nan=False)  # NaN must be found here, not in somebody's parser
    return result


def compare_judges(suite: Suite, first: tuple[str, str, FloatArray], second: tuple[str, str, FloatArray]) -> JudgePair:
    """The confusion table of two judges (name, label, scores) over the texts that both scored."""
    targets = suite.targets(suite.target_of(first[1]))
    kept = ~np.isnan(first[2]) & ~np.isnan(second[2]) & ~np.isnan(targets)
    return {
        "suite": suite.name,
        "judges": [first[0], second[0]],
        "labels": [first[1], second[1]],
        "threshold": THRESHOLD,
        **confusion(first[2][kept], second[2][kept], targets[kept] > THRESHOLD),
    }


def figures_of(result: JudgeResult) -> TextFigures:
    """What is kept of a result for ``judge list`` and for a judge's card."""
    bias, counter = result["bias"], result["counter_speech"]
    figures = {
        **{name: value for name, value in result.items() if name in SuiteFigures.__annotations__},
        "bias": bias and bias["power_mean"],
        "counter_speech_false_positive_rate": counter and counter["false_positive_rate"],
        "functionalities": {name: entry["auc"] for name, entry in (result["by_functionality"] or {}).items()},
    }
    return cast(TextFigures, figures)


def training_files(name: str) -> set[str | None]:
    """SHA-256 of the files that a judge of ours, or one that taught it, was trained on; none for other judges."""
    record = record_of(name)
    return set() if record is None else {source.sha256 for source in all_sources(record)}


def _unscored(verdicts: Iterable[Verdict]) -> dict[str, int]:
    reasons: Counter[str] = Counter()
    for verdict in verdicts:
        if not verdict.values:
            reasons["failed" if verdict.failed else "empty" if verdict.reason == EMPTY else "declined"] += 1
    return dict(reasons)


def _by_functionality(
    scores: FloatArray, positive: BoolArray, kinds: NDArray[np.str_], about_hate: bool
) -> dict[str, KindOfTest] | None:
    """By kind of test: what it is, its gold label, accuracy at the threshold, and an AUC.

    The AUC is against all texts of the other class. For a kind that has both classes, it is among its own texts.
    """
    names = ("non-hateful", "hateful") if about_hate else ("negative", "positive")
    found: dict[str, KindOfTest] = {}
    for kind in dict.fromkeys(str(name) for name in kinds if name):
        inside = kinds == kind
        golds = np.unique(positive[inside])
        pooled = inside | (positive != golds[0]) if golds.size == 1 else inside
        found[kind] = {
            "what": FUNCTIONALITIES.get(kind) or TURNS.get(kind) or kind,
            "gold": names[int(golds[0])] if golds.size == 1 else "both",
            "n": int(inside.sum()),
            "accuracy": at_threshold(scores[inside], positive[inside]).accuracy,
            "mean_score": float(scores[inside].mean()),
            "auc": auc(scores[pooled], positive[pooled]),
        }
    return found or None


def _by_target(scores: FloatArray, positive: BoolArray, groups: Sequence[tuple[str, ...]]) -> dict[str, Target] | None:
    """By group that a text is about: accuracy at the threshold, both kinds of error, AUC among its texts."""
    found: dict[str, Target] = {}
    for group in dict.fromkeys(name for names in groups for name in names):
        inside = np.array([group in names for names in groups])
        rates = at_threshold(scores[inside], positive[inside])
        found[group] = {
            "n": int(inside.sum()),
            "positives": int(positive[inside].sum()),
            "accuracy": rates.accuracy,
            "false_positive_rate": rates.false_positive_rate,
            "false_negative_rate": rates.false_negative_rate,
            "auc": auc(scores[inside], positive[inside]),
        }
    return found or None


def _bias(
    scores: FloatArray, positive: BoolArray, groups: Sequence[tuple[str, ...]], found_by: Literal["suite", "words"]
) -> Bias | None:
    """Subgroup, BPSN and BNSP AUC by group and their power means; groups with few texts of a class are only counted."""
    by_group: dict[str, GroupBias] = {}
    too_small: dict[str, GroupSize] = {}
    for group in dict.fromkeys(name for names in groups for name in names):
        inside = np.array([group in names for names in groups])
        n, hits = int(inside.sum()), int(positive[inside].sum())
        if min(hits, n - hits) < SMALLEST_GROUP:
            too_small[group] = {"n": n, "positives": hits}
        else:
            by_group[group] = {"n": n, "positives": hits, **bias_aucs(scores, positive, inside)}
    if not by_group and not too_small:
        return None
    return {
        "groups_by": found_by,
        "smallest_group": SMALLEST_GROUP,
        "groups": by_group,
        "too_small": too_small,
        "power": POWER,
        "power_mean": {
            "subgroup_auc": power_mean([entry["subgroup_auc"] for entry in by_group.values()]),
            "bpsn_auc": power_mean([entry["bpsn_auc"] for entry in by_group.values()]),
            "bnsp_auc": power_mean([entry["bnsp_auc"] for entry in by_group.values()]),
        },
    }


def _counter_speech(scores: FloatArray, positive: BoolArray, kinds: NDArray[np.str_]) -> CounterSpeech | None:
    """The share of texts that oppose hate and are called hate, overall and by how they do it; AUC against all hate."""
    inside = np.isin(kinds, COUNTER_SPEECH)
    if not inside.any():
        return None
    pooled = inside | positive
    return {
        "n": int(inside.sum()),
        "false_positives": int((scores[inside] > THRESHOLD).sum()),
        "false_positive_rate": float((scores[inside] > THRESHOLD).mean()),
        "auc_against_hate": auc(scores[pooled], positive[pooled]),
        "by": {
            kind: {
                "what": FUNCTIONALITIES.get(kind) or TURNS[kind],
                "n": int((kinds == kind).sum()),
                "false_positive_rate": float((scores[kinds == kind] > THRESHOLD).mean()),
            }
            for kind in COUNTER_SPEECH
            if (kinds == kind).any()
        },
    }
