"""``judge evaluate``: what a judge gets right, on whom it is unfair, how fast it is, and where two judges disagree.

``evaluate`` runs every judge over every suite, writing scores down as they come; ``evaluate_judge`` is one of these
without a directory; ``measure_judge`` turns scores into numbers. All scoring goes through the one checked door, so a
text that could not be scored is counted and left out, never taken for harmless.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewardlm.config import how_asked
from rewardlm.errors import ConfigError, RunError, ScorerError, ServiceError
from rewardlm.judges.metrics import (
    BINS,
    POWER,
    THRESHOLD,
    BoolArray,
    FloatArray,
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
from rewardlm.judges.settings import JudgeEvaluateSettings
from rewardlm.judges.suites import COUNTER_SPEECH, FUNCTIONALITIES, TURNS, Suite, groups_in, load_suite
from rewardlm.runs import Run, alone
from rewardlm.scoring.lineage import teachers_of
from rewardlm.scoring.scorer import (
    EMPTY,
    FailureLimit,
    Scorer,
    as_score,
    check_judges,
    cuts,
    is_online,
    is_settled,
    load_scorer,
    piece_of,
    score_texts,
)
from rewardlm.scoring.trained import judge_folder
from rewardlm.types import Verdict

Report = Callable[[int, int, str], None]

KIND = "judge-evaluation"

# Not part of what is evaluated: a run may be resumed with other values of these.
FREE_SETTINGS = ("device", "max_failed_share", "speed")
# A group needs so many texts of each class for its bias AUCs to say anything.
SMALLEST_GROUP = 10
_SPEED_TEXTS = 512
_SPEED_SECONDS = 2.0
# Every tokenizer of English has these as one token each, so a text of 20 of them has 20 tokens and the special ones.
_WORDS = (
    "the time people water house world school work family money city night day game music book road food story number "
    "group problem hand place year week company system program question government point home room mother area light"
)


def evaluate(
    settings: JudgeEvaluateSettings, out: Path | None = None, *, report: Report | None = None
) -> dict[str, Any]:
    """Every judge on every suite: {"results": [...], "confusion": [...]}; see ``measure_judge``, ``compare_judges``.

    With ``out``, a run holds it all: a finished one is read, a killed one goes on. Raises DataError for a suite,
    ScorerError for a judge that can't be used, has no such label or fails on more than ``max_failed_share`` of a suite,
    and RunError where ``out`` was made with other texts or weights, or another command writes to it.
    """
    with nullcontext() if out is None else alone(out):
        return _evaluate(settings, out, report)


def _evaluate(settings: JudgeEvaluateSettings, out: Path | None, report: Report | None) -> dict[str, Any]:
    run = _start(settings, out)
    if run is not None and run.finished:
        return stored(run)
    check_judges(settings.judge)
    suites = [load_suite(source).sample(settings.limit, settings.seed) for source in settings.suite]
    _check_suites(run, settings, suites)
    device = _device(settings.device)
    known = {(r["judge"], r["suite"]): r for r in run.read("results")} if run is not None else {}
    results = []
    scores: dict[str, dict[str, tuple[str, FloatArray]]] = {suite.name: {} for suite in suites}
    for name in settings.judge:
        scorer = load_scorer(name, device=device, services=settings.services)
        _check_weights(run, scorer)
        speed = None
        for suite in suites:
            label = choose_label(scorer, suite, settings.label)
            verdicts = _score(scorer, suite, label, run, settings.max_failed_share, report)
            values = np.array([verdict.values.get(label, np.nan) for verdict in verdicts], dtype=np.float64)
            scores[suite.name][scorer.name] = label, values
            result = known.get((scorer.name, suite.name))
            if result is None:
                # Over a network the clock would measure that, and hundreds of texts would be paid for.
                if settings.speed and speed is None and not is_online(scorer):
                    speed = measure_speed(scorer, seed=settings.seed)
                result = measure_judge(
                    scorer, suite, label, verdicts, seed=settings.seed, n_resamples=settings.n_resamples, speed=speed
                )
                if run is not None:
                    run.append("results", [result])
            results.append(result)
    tables = [
        compare_judges(suite, (first, *by_judge[first]), (second, *by_judge[second]))
        for suite in suites
        for by_judge in [scores[suite.name]]
        for first, second in combinations(by_judge, 2)
    ]
    if run is not None:
        run.update(confusion=tables, status="finished")
    return {"results": results, "confusion": tables}


def stored(run: Run) -> dict[str, Any]:
    """What ``evaluate`` returned when it made this run."""
    return {"results": list(run.read("results")), "confusion": run.meta.get("confusion", [])}


def evaluate_judge(
    scorer: Scorer,
    suite: Suite,
    *,
    label: str | None = None,
    seed: int = 0,
    n_resamples: int = 1000,
    speed: bool = True,
    max_failed_share: float = 0.01,
) -> dict[str, Any]:
    """One judge on one suite, nothing written down; see ``measure_judge``. Raises ScorerError as ``evaluate`` does."""
    chosen = choose_label(scorer, suite, label)
    verdicts = _score(scorer, suite, chosen, None, max_failed_share, None)
    clock = measure_speed(scorer, seed=seed) if speed and not is_online(scorer) else None
    return measure_judge(scorer, suite, chosen, verdicts, seed=seed, n_resamples=n_resamples, speed=clock)


def choose_label(scorer: Scorer, suite: Suite, wanted: str | None) -> str:
    """The judge's label that is evaluated: ``wanted``; else ``hate`` on a suite about hate, where the judge has it and
    was not named with a label of its own (ID#label); else its main one. Raises ScorerError that lists the labels."""
    if wanted is not None:
        if wanted not in scorer.labels:
            listed = ", ".join(scorer.labels)
            raise ScorerError(f"{scorer.name} has the labels {listed}, not {wanted!r}: name one of these")
        return wanted
    if suite.about_hate and "hate" in scorer.labels and "#" not in scorer.name:
        return "hate"
    return scorer.labels[0]


def measure_judge(
    scorer: Scorer,
    suite: Suite,
    label: str,
    verdicts: Sequence[Verdict],
    *,
    seed: int,
    n_resamples: int,
    speed: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Everything that is said of a judge on a suite, JSON-able, None where it doesn't apply.

    ``n`` texts have a target of ``target``, the suite's label that ``label`` is held against; ``scored`` of them count,
    and ``cut`` of these the judge read in part, because they are long. A soft target above 0.5 is a positive.
    ``by_functionality`` and ``by_target`` are there where the suite says what its texts test and whom they are about;
    ``bias`` holds the AUCs of Borkan et al. 2019 by group, found by words where the suite doesn't say;
    ``counter_speech`` is the share of texts opposing hate that are called hate.
    """
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
    resampled = {"n_resamples": n_resamples, "seed": seed}
    result = {
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
        "auc": (area := auc(s, positive)),
        "auc_ci95": (interval := auc_interval95(s, positive, **resampled)),
        "at_chance": is_at_chance(area, interval),
        "average_precision": average_precision(s, positive),
        "spearman": spearman(s, t),
        "spearman_ci95": spearman_interval95(s, t, **resampled),
        "pearson": pearson(s, t),
        "ece": expected_calibration_error(s, t),
        "ece_bins": BINS,
        "brier": brier(s, t),
        **asdict(at_threshold(s, positive)),
        "by_functionality": _by_functionality(s, positive, kinds, suite.about_hate),
        "by_target": _by_target(s, positive, groups) if suite.says_groups else None,
        "bias": _bias(s, positive, groups, "suite" if suite.says_groups else "words"),
        "counter_speech": _counter_speech(s, positive, kinds),
        "reliability": reliability(s, t),
        "roc": roc(s, positive),
        "texts_per_second": speed["texts_per_second"] if speed else None,
        "speed": speed,
        "trained_on_this_file": not suite.held_out and suite.sha256 in _training_files(scorer.name),
        "sha256": suite.sha256,
        "revision": getattr(scorer, "revision", None),
    }
    json.dumps(result, allow_nan=False)  # NaN must be found here, not in somebody's parser
    return result


def compare_judges(
    suite: Suite, first: tuple[str, str, FloatArray], second: tuple[str, str, FloatArray]
) -> dict[str, Any]:
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


def measure_speed(scorer: Scorer, *, seed: int = 0) -> dict[str, Any]:
    """How fast ``scorer`` is here: distinct texts of 20 common words, one token each, as one batch and one by one.

    The batch has 512 texts, fewer for a judge that would take longer than about two seconds over them, and the judge
    splits it as it sees fit. The fastest of five passes counts: whatever else the machine does only makes them slower.
    """
    rng = random.Random(seed)
    texts = [" ".join(rng.sample(_WORDS.split(), 20)) for _ in range(_SPEED_TEXTS + 64)]
    score_texts(scorer, texts[:8])  # the first call loads and compiles what later ones find ready
    begun = time.perf_counter()
    score_texts(scorer, texts[8:40])
    rate = 32 / max(time.perf_counter() - begun, 1e-9)
    n = min(_SPEED_TEXTS, max(32, int(rate * _SPEED_SECONDS)))
    batch = min(_seconds(scorer, texts[:n]) for _ in range(5))
    single = min(_seconds(scorer, [text]) for text in texts[_SPEED_TEXTS : _SPEED_TEXTS + 16])
    torch = sys.modules.get("torch")
    return {
        "texts_per_second": n / batch,
        "ms_per_text": 1000 * batch / n,
        "ms_one_text": 1000 * single,
        "batch": n,
        "tokens_per_text": 20,
        "threads": torch.get_num_threads() if torch is not None else 1,
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def _seconds(scorer: Scorer, texts: list[str]) -> float:
    begun = time.perf_counter()
    score_texts(scorer, texts)
    return time.perf_counter() - begun


def _start(settings: JudgeEvaluateSettings, out: Path | None) -> Run | None:
    if out is None:
        return None
    label = ", ".join(settings.judge)
    recorded = settings.model_dump(mode="json")
    free = (*FREE_SETTINGS, *how_asked(recorded))
    return Run.start(out, kind=KIND, label=label, settings=recorded, free=free, added=("services",))


def _check_suites(run: Run | None, settings: JudgeEvaluateSettings, suites: Sequence[Suite]) -> None:
    names = [suite.name for suite in suites]
    for name in names:
        if names.count(name) > 1:
            sources = [s for s, n in zip(settings.suite, names, strict=True) if n == name]
            raise ConfigError(f"suites {' and '.join(sources)} are both called {name}: evaluate them one at a time")
    if run is None:
        return
    found = {suite.name: {"sha256": suite.sha256, "n": len(suite.texts)} for suite in suites}
    if run.meta.get("suites", found) != found:
        raise RunError(f"{run.path} was begun with other texts of {', '.join(names)}: choose another --out")
    run.update(suites=found)


def _check_weights(run: Run | None, scorer: Scorer) -> None:
    if run is None:
        return
    found = {"name": scorer.name, "labels": list(scorer.labels), "revision": getattr(scorer, "revision", None)}
    known = {entry["name"]: entry for entry in run.meta.get("scorers", [])}
    if known.get(scorer.name, found) != found:
        raise RunError(f"{run.path} was begun with other weights of {scorer.name}: choose another --out")
    run.update(scorers=[*(entry for entry in known.values() if entry["name"] != scorer.name), found])


def _device(name: str) -> str:
    from rewardlm.models.load import resolve_device

    return str(resolve_device(name))


def _score(
    scorer: Scorer, suite: Suite, label: str, run: Run | None, max_failed_share: float, report: Report | None
) -> list[Verdict]:
    """One verdict a text; what the run holds already is not asked again, but for scores that failed."""
    ids = [f"{suite.name}#{row}" for row in range(len(suite.texts))]
    known: dict[str, Verdict] = {}
    for record in run.read("scores") if run is not None else ():
        if record["scorer"] == scorer.name and record["label"] == label:
            if record["value"] is not None:
                known[record["generation_id"]] = Verdict({label: record["value"]})
            elif is_settled(record):
                known[record["generation_id"]] = Verdict(reason=record["reason"])
    limit = FailureLimit(max_failed_share)
    limit.add(scorer.name, list(known.values()))
    missing = [row for row, id_ in enumerate(ids) if id_ not in known]
    size = piece_of(scorer)
    for start in range(0, len(missing), size):
        rows = missing[start : start + size]
        try:
            verdicts = score_texts(scorer, [suite.texts[row].text for row in rows])
        except (ServiceError, KeyboardInterrupt):
            said: Mapping[str, Verdict] = getattr(scorer, "unfinished", {})
            if run is not None:
                kept = [(row, said[text]) for row in rows if (text := suite.texts[row].text) in said]
                run.append("scores", [as_score(ids[row], scorer.name, label, verdict) for row, verdict in kept])
            raise
        known |= {ids[row]: verdict for row, verdict in zip(rows, verdicts, strict=True)}
        if run is not None:
            run.append(
                "scores",
                [as_score(ids[row], scorer.name, label, v) for row, v in zip(rows, verdicts, strict=True)],
            )
        limit.add(scorer.name, verdicts)
        if report is not None:
            report(len(ids) - len(missing) + start + len(rows), len(ids), f"{scorer.name} on {suite.name}")
    limit.close()
    return [known[id_] for id_ in ids]


def _unscored(verdicts: Iterable[Verdict]) -> dict[str, int]:
    reasons: Counter[str] = Counter()
    for verdict in verdicts:
        if not verdict.values:
            reasons["failed" if verdict.failed else "empty" if verdict.reason == EMPTY else "declined"] += 1
    return dict(reasons)


def _by_functionality(
    scores: FloatArray, positive: BoolArray, kinds: NDArray[np.str_], about_hate: bool
) -> dict[str, Any] | None:
    """By kind of test: what it is, its gold label, accuracy at the threshold, and an AUC.

    The AUC is against all texts of the other class; of a kind that has both classes, among its own texts.
    """
    names = ("non-hateful", "hateful") if about_hate else ("negative", "positive")
    found = {}
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


def _by_target(scores: FloatArray, positive: BoolArray, groups: Sequence[tuple[str, ...]]) -> dict[str, Any] | None:
    """By group that a text is about: accuracy at the threshold, both kinds of error, AUC among its texts."""
    found = {}
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
    scores: FloatArray, positive: BoolArray, groups: Sequence[tuple[str, ...]], found_by: str
) -> dict[str, Any] | None:
    """Subgroup, BPSN and BNSP AUC by group and their power means; groups with few texts of a class are only counted."""
    by_group, too_small = {}, {}
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
            name: power_mean([value for entry in by_group.values() if (value := entry[name]) is not None])
            for name in ("subgroup_auc", "bpsn_auc", "bnsp_auc")
        },
    }


def _counter_speech(scores: FloatArray, positive: BoolArray, kinds: NDArray[np.str_]) -> dict[str, Any] | None:
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


def training_data(name: str) -> list[dict[str, Any]]:
    """The sources that a judge of ours, or one that taught it, says it was trained on; none for other judges."""
    folder = judge_folder(name)
    if folder is None or not (folder / "judge.json").is_file():
        return []
    record = json.loads((folder / "judge.json").read_text(encoding="utf-8"))
    return _data_of(record)


def _data_of(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [*record.get("data", []), *(source for entry in teachers_of(record) for source in _data_of(entry))]


def _training_files(name: str) -> set[str]:
    return {str(source.get("sha256")) for source in training_data(name)}
