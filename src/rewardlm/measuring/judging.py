"""Judges stored answers: the meter's second half, and ``rewardlm score``."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from rewardlm.config import ServicesSettings
from rewardlm.data.dialogues import normalised
from rewardlm.errors import RunError, ServiceError
from rewardlm.measuring.records import Positions
from rewardlm.measuring.utility_records import JUDGED, SCORES, stored_answers
from rewardlm.models.load import resolve_device
from rewardlm.progress import ProgressCallback
from rewardlm.runs import Run, ScorerEntry, alone
from rewardlm.scoring.lineage import count_read, lineage_of
from rewardlm.scoring.load import load_scorer
from rewardlm.scoring.scorer import EMPTY, FailureLimit, Scorer, as_score, cuts, is_settled, piece_of, score_texts
from rewardlm.scoring.thresholds import Matching, recorded_thresholds
from rewardlm.stats import BoolArray
from rewardlm.types import Generation, Prompt, Score, Verdict

# Records that are looked at together.
_PIECE = 4096
# Answers of the utility suite that are judged at a time.
_AT_ONCE = 64


def score_run(
    path: Path,
    name: str,
    *,
    device: str = "auto",
    max_failed_share: float = 0.01,
    services: ServicesSettings | None = None,
    thresholds: Path | None = None,
    matching: Matching = "share",
    report: ProgressCallback | None = None,
) -> Run:
    """Run another judge over the stored answers. Scores that are there are not computed again.

    If the file ``thresholds`` has one for this judge, it is recorded, and ``compare`` will go by it.

    Raises ScorerError once more than ``max_failed_share`` of the answers can't be scored and ServiceError where the
    judge's service can't be used; what was scored stays. Raises RunError if the run holds scores of another judge
    of this name, or while another command writes to it.
    """
    run = Run.open(path)
    if run.meta["kind"] not in {"measure", "import"}:
        raise RunError(f"{path} is a run of kind {run.meta['kind']!r}: a measurement or an import is needed")
    scorer = load_scorer(name, device=str(resolve_device(device)), services=services)
    with alone(path):
        # Opened again, now that nobody else can write to it.
        run = Run.open(path)
        recorded = recorded_thresholds(run, [scorer], thresholds, matching)
        run = _score_run(run, scorer, max_failed_share, report)
        run.update(**recorded)
        return run


def _score_run(run: Run, scorer: Scorer, max_failed_share: float, report: ProgressCallback | None) -> Run:
    run.mend()
    refuse_other_judges(run, [scorer])
    known, begun = _by_name(run.meta.get("scorers")), _by_name(run.meta.get("begun_scorers"))
    before = {**begun.pop(scorer.name, {}), **known.pop(scorer.name, {})}
    # At once, so that if this judge is stopped half-way, no other judge can go on under its name.
    run.update(
        begun_scorers=[
            *begun.values(),
            describe_scorer(scorer, max_failed_share, prompts=run.each_prompt(), before=before),
        ]
    )
    limit = FailureLimit(max_failed_share)
    score_missing(run, [scorer], [limit], report)
    limit.close()
    score_answers(run, [scorer], max_failed_share, report=report)
    run.update(
        scorers=[
            *known.values(),
            describe_scorer(scorer, max_failed_share, run.each_generation(), prompts=run.each_prompt(), before=before),
        ],
        begun_scorers=[*begun.values()],
    )
    return run


def _by_name(judges: Sequence[ScorerEntry] | None) -> dict[str, ScorerEntry]:
    return {judge["name"]: judge for judge in judges or ()}


def describe_scorer(
    scorer: Scorer,
    max_failed_share: float,
    answers: Iterable[Generation] = (),
    *,
    prompts: Iterable[Prompt] | None = None,
    before: Mapping[str, Any] | None = None,
) -> dict[str, object]:
    """What a run records of a judge: ``name``, ``labels`` and, if it has them, the ``revision`` of its weights and
    the ``precision`` that it computes in; ``cut``, how many of the answers it read only in part; and the
    ``max_failed_share`` that it was held to. For a judge behind HTTP, also the ``service`` and the ``dates`` on which
    it was asked, with the earlier ones in ``before``. The audit needs its ``lineage``, and how many of the ``prompts``
    it was trained on (``read_prompts``; None if nobody knows).
    """
    lineage = lineage_of(scorer.name)
    texts = (answer.text for answer in answers)
    cut = 0
    while piece := list(islice(texts, 1024)):
        cut += sum(cuts(scorer, piece))
    return {
        "name": scorer.name,
        "labels": list(scorer.labels),
        "revision": getattr(scorer, "revision", None),
        "precision": getattr(scorer, "precision", None),
        "cut": cut,
        "max_failed_share": max_failed_share,
        "lineage": lineage.to_dict(),
        "read_prompts": count_read(lineage, (normalised(prompt.text) for prompt in prompts or ())),
        **_service_of(scorer, before or {}),
    }


def _service_of(scorer: Scorer, before: Mapping[str, Any]) -> dict[str, object]:
    if not hasattr(scorer, "address"):
        return {}
    dates = {*before.get("dates", []), *getattr(scorer, "dates", ())}
    return {"service": scorer.address, "dates": sorted(dates)}


def refuse_other_judges(run: Run, scorers: Sequence[Scorer]) -> None:
    """Raise RunError if scores of two judges of one name would end up in one column."""
    known = {**_by_name(run.meta.get("begun_scorers")), **_by_name(run.meta.get("scorers"))}
    for scorer in scorers:
        before = known.get(scorer.name)
        if before is None:
            continue
        labels, revision = list(scorer.labels), getattr(scorer, "revision", None)
        # If nobody knows a judge's weights, we trust its name.
        other = before["labels"] != labels or revision not in (None, before.get("revision") or revision)
        # Failed scores don't count: this judge is asked for them again anyway.
        if other and any(record["scorer"] == scorer.name and is_settled(record) for record in run.read("scores")):
            raise RunError(
                f"{run.path} has scores of another {scorer.name!r} (labels {', '.join(before['labels'])}; revision "
                f"{before.get('revision')}; now {', '.join(labels)}; {revision}): put its settings back, or score "
                "another run"
            )


def cut_short(run: Run) -> list[str]:
    """A sentence for each thing that was too long in a measured run: prompts for the model, answers for a judge."""
    sentences = []
    if n := run.meta.get("truncated_prompts"):
        sentences.append(f"{n:,} prompts were too long for the model and lost the beginning of their history")
    for judge in run.meta.get("scorers", []):
        if n := judge.get("cut"):
            sentences.append(f"{n:,} answers were too long for the judge {judge['name']}: it read a part of each")
    return sentences


def score_missing(
    run: Run, scorers: Sequence[Scorer], limits: Sequence[FailureLimit], report: ProgressCallback | None = None
) -> None:
    """Score the stored answers that lack a score of some scorer; raises as ``score_generations`` does."""
    judged = answered(run, scorers, limits)
    total = sum(len(of_scorer) for of_scorer in judged.values())
    done = sum(int(of_scorer.sum()) for of_scorer in judged.values())
    if report is not None:
        report(done, total, "scores")
    answers = run.each_generation()
    start = 0
    while piece := list(islice(answers, _PIECE)):
        for scorer, limit in zip(scorers, limits, strict=True):
            there = judged[scorer.name][start : start + len(piece)]
            missing = [answer for answer, known in zip(piece, there, strict=True) if not known]
            score_generations(run, [scorer], missing, [limit], report, done=done, total=total)
            done += len(missing)
        start += len(piece)


def answered(run: Run, scorers: Sequence[Scorer], limits: Sequence[FailureLimit]) -> dict[str, BoolArray]:
    """By scorer Bool[G]: which of the answers, in the order in which they are stored, it has judged in every label, or
    declined; ``limits`` count them as seen.

    Other scores of these scorers, failed or incomplete, are taken out of the run, so that they are asked for again. If
    a judge broke, starting the command once more must not make the run a finished one. The records are read in pieces,
    because there may be millions.
    """
    labels = {scorer.name: len(scorer.labels) for scorer in scorers}
    positions = Positions(array("q", (hash(record["id"]) for record in run.read("generations"))))
    settled = {name: np.zeros(len(positions), np.int32) for name in labels}
    seen = dict.fromkeys(labels, 0)
    for piece in _pieces(run.read("scores")):
        at = positions.of([record["generation_id"] for record in piece])
        for record, position in zip(piece, at.tolist(), strict=True):
            name = record["scorer"]
            if name in labels and position >= 0 and is_settled(record):
                settled[name][position] += 1
                seen[name] += record["reason"] != EMPTY
    complete = {name: settled[name] == labels[name] for name in labels}

    def kept() -> Iterator[dict[str, Any]]:
        for piece in _pieces(run.read("scores")):
            at = positions.of([record["generation_id"] for record in piece])
            for record, position in zip(piece, at.tolist(), strict=True):
                # If a score's answer isn't here, ``compare`` will refuse it.
                if record["scorer"] not in labels or position < 0 or complete[record["scorer"]][position]:
                    yield record

    if sum(1 for _ in kept()) < sum(1 for _ in run.read("scores")):
        run.replace("scores", kept())
    for scorer, limit in zip(scorers, limits, strict=True):
        limit.seen += seen[scorer.name] // labels[scorer.name]
    return complete


def _pieces(records: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while piece := list(islice(records, _PIECE)):
        yield piece


def score_generations(
    run: Run,
    scorers: Sequence[Scorer],
    generations: Sequence[Generation],
    limits: Sequence[FailureLimit],
    report: ProgressCallback | None = None,
    *,
    done: int = 0,
    total: int = 0,
) -> None:
    """Score answers and append the scores, which are on the disk before a limit may end the run.

    There is one limit per scorer. ``report`` is told how many of ``total`` are scored, ``done`` of them before. Raises
    ScorerError if a limit is exceeded. The error of a judge that can't be used is raised once what it said before is on
    the disk.
    """
    size = min((piece_of(scorer) for scorer in scorers), default=512)
    for start in range(0, len(generations), size):
        piece = generations[start : start + size]
        for scorer, limit in zip(scorers, limits, strict=True):
            try:
                verdicts = score_texts(scorer, [generation.text for generation in piece])
            except (ServiceError, KeyboardInterrupt):
                said: Mapping[str, Verdict] = getattr(scorer, "unfinished", {})
                kept = [generation for generation in piece if generation.text in said]
                found = [said[generation.text] for generation in kept]
                run.append("scores", score_records(scorer.name, scorer.labels, kept, found))
                raise
            run.append("scores", score_records(scorer.name, scorer.labels, piece, verdicts))
            limit.add(scorer.name, verdicts)
        if report is not None:
            report(done + start + len(piece), total, "scores")


def score_records(
    scorer: str, labels: Sequence[str], generations: Sequence[Generation], verdicts: Sequence[Verdict]
) -> list[Score]:
    """What a run stores of one judge's verdicts: a record per answer and label, with a reason if it has no value."""
    return [
        as_score(generation.id, scorer, label, verdict)
        for generation, verdict in zip(generations, verdicts, strict=True)
        for label in labels
    ]


def score_answers(
    run: Run, scorers: Sequence[Scorer], max_failed_share: float, *, report: ProgressCallback | None = None
) -> None:
    """Judge the stored answers about groups that lack a score, into utility_scores.jsonl.

    Raises ScorerError once more than ``max_failed_share`` of the answers can't be scored.
    """
    answers = [record for record in stored_answers(run) if record["task"] == JUDGED]
    settled = _settled(run)
    for scorer in scorers:
        limit = FailureLimit(max_failed_share)
        missing = [record for record in answers if record["id"] not in settled.get(scorer.name, ())]
        limit.seen = len(answers) - len(missing)
        for start in range(0, len(missing), _AT_ONCE):
            piece = missing[start : start + _AT_ONCE]
            verdicts = score_texts(scorer, [record["text"] for record in piece])
            # Only by its main label, which is its first.
            label = scorer.labels[:1]
            run.append(SCORES, score_records(scorer.name, label, [_generation(one) for one in piece], verdicts))
            limit.add(scorer.name, verdicts)
            if report is not None:
                report(start + len(piece), len(missing), f"groups by {scorer.name}")
        if missing:
            limit.close()


def _settled(run: Run) -> dict[str, set[str]]:
    """By judge, the answers that it has judged, or declined for good."""
    found: dict[str, set[str]] = {}
    for record in run.read(SCORES):
        if is_settled(record):
            found.setdefault(record["scorer"], set()).add(record["generation_id"])
    return found


def _generation(record: Mapping[str, Any]) -> Generation:
    """What ``score_records`` needs of a stored answer."""
    return Generation(
        id=record["id"],
        prompt_id=record["prompt_id"],
        model="",
        sample=record["sample"],
        text=record["text"],
        n_tokens=record["n_tokens"],
        finish=record["finish"],
        seed=record["seed"],
    )
