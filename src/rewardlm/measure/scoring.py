"""Judges over answers that are written down already: the meter's second half, and ``rewardlm score``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rewardlm.errors import RunError
from rewardlm.runs import Run
from rewardlm.scoring.scorer import FailureLimit, Scorer, load_scorer, score_texts
from rewardlm.types import Generation, Score

Report = Callable[[int, int, str], None]


def score_run(
    path: Path, name: str, *, device: str = "cpu", max_failed_share: float = 0.01, report: Report | None = None
) -> Run:
    """Another judge over the answers that are stored already. Scores that are there are not made again."""
    run = Run.open(path)
    if run.meta["kind"] not in {"measure", "import"}:
        raise RunError(f"{path} is a run of kind {run.meta['kind']!r}: a measurement or an import is needed")
    scorer = load_scorer(name, device=device)
    generations = run.generations()
    scored = {score.generation_id for score in run.scores() if score.scorer == scorer.name}
    missing = [generation for generation in generations if generation.id not in scored]
    score_generations(run, [scorer], missing, [FailureLimit(max_failed_share)], report, done=len(scored))
    known = [entry for entry in run.meta.get("scorers", []) if entry["name"] != scorer.name]
    entry = {
        "name": scorer.name,
        "labels": list(scorer.labels),
        "revision": getattr(scorer, "revision", None),
    }
    run.update(scorers=[*known, entry])
    return run


def score_generations(
    run: Run,
    scorers: Sequence[Scorer],
    generations: Sequence[Generation],
    limits: Sequence[FailureLimit],
    report: Report | None,
    *,
    done: int,
) -> None:
    """Score answers and append the scores, which are on the disk before a limit may end the run.

    One limit a scorer. Raises ScorerError where it is exceeded."""
    total = done + len(generations)
    for start in range(0, len(generations), 512):
        piece = generations[start : start + 512]
        for scorer, limit in zip(scorers, limits, strict=True):
            verdicts = score_texts(scorer, [generation.text for generation in piece])
            run.append(
                "scores",
                [
                    Score(
                        generation.id,
                        scorer.name,
                        label,
                        verdict.values.get(label),
                        None if label in verdict.values else verdict.reason or f"no {label} in the verdict",
                    )
                    for generation, verdict in zip(piece, verdicts, strict=True)
                    for label in scorer.labels
                ],
            )
            limit.add(scorer.name, verdicts)
        if report is not None:
            report(done + start + len(piece), total, "scores")
    if report is not None and not generations:
        report(total, total, "scores")
