"""Who is examined inside, and by whose judgement: the base, its adapters, and the answers that the sample holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rewardlm.config import InterpretSettings
from rewardlm.errors import ModelError, RewardLMError
from rewardlm.interpreting import inside, reading
from rewardlm.interpreting.intervals import Resampling
from rewardlm.interpreting.residual import layout_of
from rewardlm.interpreting.sample import Sample, redrawn_pairs, stored_answers, toxicity_changes
from rewardlm.interpreting.subjects import Subject
from rewardlm.interpreting.tokens import Judge
from rewardlm.measuring.measured import Measured
from rewardlm.scoring.scorer import Scorer, load_scorer, score_texts

# Of the baseline's stored answers so many may teach the probe, drawn by seed.
_LABELLED = 400


def examine(
    measured: Sequence[Measured],
    subjects: Sequence[Subject],
    sample: Sample,
    settings: InterpretSettings,
    *,
    report: Callable[[int, int, str], None] | None = None,
) -> tuple[dict[str, Any] | None, list[str]]:
    """What ``inside.examine`` finds of the baseline and of those runs that are adapters on it, and what it left out.

    None where the baseline is no bare base or of a family that can't be taken apart, or nothing is an adapter on it.
    """
    base = subjects[0]
    if base.adapter is not None:
        return None, [
            f"{base.label} is itself an adapter, so the residual stream was not taken apart: name the base's run first."
        ]
    there = [number for number, subject in enumerate(subjects) if number == 0 or subject.policy is base.policy]
    there = [number for number in there if number == 0 or subjects[number].adapter is not None]
    if len(there) < 2:
        return None, [f"None of the runs is an adapter on {base.label}’s model: the residual stream was left out."]
    try:
        layout_of(base.policy.causal_lm)
    except ModelError as error:
        return None, [f"The residual stream was left out: {error}."]
    notes = [
        f"{subject.label} is no adapter on {base.label}’s model: its residual stream was left out."
        for number, subject in enumerate(subjects)
        if number not in there
    ]
    judge, more = _judge(sample.scorer, str(base.policy.device))
    own = settings.inside
    chosen = own.model_copy(
        update={name: getattr(settings, name) for name in ("seed", "n_resamples") if name not in own.model_fields_set}
    )
    answers = {(answer.pair, answer.author): answer for answer in sample.answers}
    intervals = Resampling(chosen.n_resamples, chosen.seed)
    # Of the whole run: the sample has as many answers that rose as fell.
    changes = [None, *(intervals.change(*change) for change in toxicity_changes(measured, sample.scorer))]
    pairs = range(len(sample.pairs))
    found = inside.examine(
        base.policy,
        [answers[pair, 0].prompt for pair in pairs],
        [
            inside.Subject(
                subjects[number].label,
                subjects[number].adapter,
                [answers[pair, number].tokens for pair in pairs],
                [answers[pair, number].toxicity for pair in pairs],
                changes[number],
            )
            for number in there
        ],
        judge,
        chosen,
        word_judge=_asked(load_scorer(settings.word_judge)) if settings.word_judge else None,
        labelled=stored_answers(measured[0], base, sample.scorer, limit=_LABELLED, seed=settings.seed),
        redrawn=redrawn_pairs(measured[0], base, sample.scorer, limit=chosen.redraw_pairs, above=reading.TOXIC_ABOVE),
        report=report,
    )
    return found, [*notes, *more]


def _judge(name: str, device: str) -> tuple[Judge, list[str]]:
    """The sample's own judge; ``starter`` where that one is asked over HTTP or isn't here."""
    why = "it is asked over HTTP"
    if name.partition(":")[0] not in ("perspective", "endpoint"):
        try:
            return _asked(load_scorer(name, device=device)), []
        except RewardLMError as error:
            why = str(error)
    return (
        _asked(load_scorer("starter", device=device)),
        [f"New answers, under changes of the model, were judged by starter, since {name} can’t be asked here ({why})."],
    )


def _asked(scorer: Scorer) -> Judge:
    label = scorer.labels[0]
    return lambda texts: [verdict.values.get(label) for verdict in score_texts(scorer, texts)]
