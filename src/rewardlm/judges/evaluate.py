"""``judge evaluate``: runs every judge over every suite, stores the scores as they come, and times each judge.

``results`` computes the figures from the scores. All scoring goes through ``score_texts``, so a text that could not be
scored is counted and left out, never taken for harmless.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from itertools import combinations
from pathlib import Path

import numpy as np

from rewardlm.config import how_asked
from rewardlm.errors import ConfigError, RunError, ScorerError, ServiceError
from rewardlm.judges.results import Evaluation, JudgeResult, compare_judges, measure_judge, read_results
from rewardlm.judges.settings import JudgeEvaluateSettings
from rewardlm.judges.suites import Suite, load_suite
from rewardlm.progress import ProgressCallback
from rewardlm.runs import Run, alone
from rewardlm.scoring.load import check_judges, load_scorer
from rewardlm.scoring.record import Speed
from rewardlm.scoring.scorer import (
    FailureLimit,
    Scorer,
    as_score,
    is_online,
    is_settled,
    piece_of,
    score_texts,
)
from rewardlm.stats import FloatArray
from rewardlm.types import Verdict

KIND = "judge-evaluation"

# Not part of what is evaluated: a run may be resumed with other values of these.
FREE_SETTINGS = ("device", "max_failed_share", "speed")
_SPEED_TEXTS = 512
_SPEED_SECONDS = 2.0
# Every English tokenizer has one token for each of these, so a text of 20 words has 20 tokens and the special ones.
SPEED_WORDS = (
    "the time people water house world school work family money city night day game music book road food story number "
    "group problem hand place year week company system program question government point home room mother area light"
)


def evaluate(
    settings: JudgeEvaluateSettings, out: Path | None = None, *, report: ProgressCallback | None = None
) -> Evaluation:
    """Every judge on every suite.

    With ``out``, a run stores everything: a finished one is read, a killed one resumes. Raises DataError for a bad
    suite, ScorerError for a judge that can't be used, has no such label or fails on more than ``max_failed_share`` of a
    suite, and RunError where ``out`` was made with other texts or weights, or another command writes to it.
    """
    with nullcontext() if out is None else alone(out):
        return _evaluate(settings, out, report)


def _evaluate(settings: JudgeEvaluateSettings, out: Path | None, report: ProgressCallback | None) -> Evaluation:
    run = _start(settings, out)
    if run is not None and run.finished:
        return read_results(run)
    check_judges(settings.judge, settings.services)
    suites = [load_suite(source).sample(settings.limit, settings.seed) for source in settings.suite]
    _check_suites(run, settings, suites)
    device = _device(settings.device)
    known = {(r["judge"], r["suite"]): r for r in read_results(run)["results"]} if run is not None else {}
    results: list[JudgeResult] = []
    scores: dict[str, dict[str, tuple[str, FloatArray]]] = {suite.name: {} for suite in suites}
    for name in settings.judge:
        scorer = load_scorer(name, device=device, services=settings.services)
        _check_weights(run, scorer)
        speed = None
        for suite in suites:
            label = choose_label(scorer, suite, settings.label)
            verdicts = score_suite(
                scorer, suite, label, max_failed_share=settings.max_failed_share, run=run, report=report
            )
            values = np.array([verdict.values.get(label, np.nan) for verdict in verdicts], dtype=np.float64)
            scores[suite.name][scorer.name] = label, values
            result = known.get((scorer.name, suite.name))
            if result is None:
                # Over a network the clock would time the network, and you would pay for hundreds of texts.
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


def measure_speed(scorer: Scorer, *, seed: int = 0) -> Speed:
    """How fast ``scorer`` is here: distinct texts of 20 common words, one token each, as one batch and one by one.

    The batch has 512 texts, fewer for a judge that would take longer than about two seconds over them, and the judge
    splits it as it sees fit. The fastest of five passes counts: whatever else the machine does only makes them slower.
    """
    rng = random.Random(seed)
    texts = [" ".join(rng.sample(SPEED_WORDS.split(), 20)) for _ in range(_SPEED_TEXTS + 64)]
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
    return Run.start(out, kind=KIND, label=label, settings=recorded, free=free)


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


def score_suite(
    scorer: Scorer,
    suite: Suite,
    label: str,
    *,
    max_failed_share: float = 0.01,
    run: Run | None = None,
    report: ProgressCallback | None = None,
) -> list[Verdict]:
    """One verdict per text, in order. Texts that the run has scored are not scored again, except those that failed."""
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
