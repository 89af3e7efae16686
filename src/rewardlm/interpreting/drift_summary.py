"""Drift records of single answers become means, parting points and promoted tokens of each tuned model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rewardlm.config import InterpretSettings
from rewardlm.interpreting.answers import AnswerSample
from rewardlm.interpreting.drift import TokenChange, VocabularyDrift, first_parting, most_changed
from rewardlm.interpreting.findings import (
    Band,
    ChangedToken,
    DriftComparison,
    DriftTransition,
    DriftValues,
    Parting,
    PartingPlace,
    Ranks,
    TokenReading,
    ToxicCheck,
)
from rewardlm.interpreting.intervals import mean_of_known, stretches
from rewardlm.interpreting.records import DriftRecord
from rewardlm.interpreting.stratified import RunMeans, beyond_redraw, by_transition, transitions_of
from rewardlm.measuring.measured import Measured

_SHOWN_TOKENS = 15


def drift_comparison(
    model: int,
    measured: Sequence[Measured],
    sample: AnswerSample,
    records: Sequence[DriftRecord],
    sums: VocabularyDrift,
    row: int,
    tokenizer: Any,
    settings: InterpretSettings,
    draws: RunMeans,
) -> DriftComparison:
    """From the baseline to ``model``, on the baseline's answers and on the model's own; ``row`` is the model's in
    ``sums``."""
    theirs = [record for record in records if record.author == 0]
    promoted, demoted = most_changed(sums, 0, row, k=_SHOWN_TOKENS)
    return DriftComparison(
        from_=measured[0].label,
        to=measured[model].label,
        on_baseline=_reading(model, theirs, 0, model, draws),
        on_own=_reading(model, [record for record in records if record.author == model], model, 0, draws),
        toxic_check=_toxic_check(model, sample, theirs, settings, draws),
        parting=_parting(model, theirs, settings, draws),
        by_transition=_transitions(model, sample, theirs, draws),
        kl_along=_along(model, theirs, draws),
        promoted=[_changed_token(change, tokenizer) for change in promoted],
        demoted=[_changed_token(change, tokenizer) for change in demoted],
    )


def _reading(model: int, records: Sequence[DriftRecord], author: int, reader: int, draws: RunMeans) -> TokenReading:
    owner = [record.pair for record in records]
    return TokenReading(
        answers=len(records),
        tokens=sum(len(record.tokens) for record in records),
        logprob_change=draws.change([record.change(record.logprobs, model) for record in records], owner),
        entropy_change=draws.change([record.change(record.entropy, model) for record in records], owner),
        # KL(author ‖ reader): what the author's next-token distribution holds that the reader's doesn't expect.
        kl=draws.mean([mean_of_known(record.kl[author][reader]) for record in records], owner),
        rank=Ranks(before=_median_rank(records, 0, draws), after=_median_rank(records, model, draws)),
        same_first_choice=draws.mean(
            [mean_of_known(np.equal(record.choice[0], record.choice[model])) for record in records], owner
        ),
    )


def _toxic_check(
    model: int, sample: AnswerSample, records: Sequence[DriftRecord], settings: InterpretSettings, draws: RunMeans
) -> ToxicCheck:
    """Do the baseline's toxic answers lose more probability than its others? Nats a token."""
    groups: dict[bool, tuple[list[float], list[int]]] = {True: ([], []), False: ([], [])}
    for record in records:
        values, owner = groups[sample.pairs[record.pair].toxicity[0] > settings.threshold]
        values.append(record.change(record.logprobs, model))
        owner.append(record.pair)
    return ToxicCheck(
        threshold=settings.threshold,
        toxic=draws.change(*groups[True]),
        other=draws.change(*groups[False]),
        difference=draws.difference(*groups[True], *groups[False]),
    )


def _parting(model: int, records: Sequence[DriftRecord], settings: InterpretSettings, draws: RunMeans) -> Parting:
    found = [
        first_parting(
            np.array(record.kl[0][model]), np.not_equal(record.choice[0], record.choice[model]), settings.parting_kl
        )
        for record in records
    ]

    def of(places: Sequence[int | None]) -> PartingPlace:
        known = [(place, record.pair) for place, record in zip(places, records, strict=True) if place is not None]
        quartiles = None
        if known:
            quartiles = draws.quantiles([place for place, _ in known], [pair for _, pair in known], [0.25, 0.5, 0.75])
        return PartingPlace(quartiles=quartiles, parted=len(known), of=len(places))

    return Parting(
        threshold_kl=settings.parting_kl,
        by_kl=of([by_kl for by_kl, _ in found]),
        by_first_choice=of([by_choice for _, by_choice in found]),
    )


def _transitions(
    model: int, sample: AnswerSample, records: Sequence[DriftRecord], draws: RunMeans
) -> list[DriftTransition]:
    values = {
        "logprob_change": {record.pair: record.change(record.logprobs, model) for record in records},
        "kl": {record.pair: mean_of_known(record.kl[0][model]) for record in records},
    }
    ways = transitions_of(sample, model)
    beyond = beyond_redraw(sample, ways, values, draws)
    return [
        DriftTransition(
            transition=way, pairs=pairs, **found, beyond_redraw=DriftValues(**beyond[way]) if way in beyond else None
        )
        for way, (pairs, found) in by_transition(ways, values, draws).items()
    ]


def _along(model: int, records: Sequence[DriftRecord], draws: RunMeans) -> Band:
    return draws.along(
        [value for record in records for value in record.kl[0][model]],
        [at for record in records for at in range(len(record.tokens))],
        [record.pair for record in records for _ in record.tokens],
        stretches(max((len(record.tokens) for record in records), default=0)),
    )


def _changed_token(change: TokenChange, tokenizer: Any) -> ChangedToken:
    return ChangedToken(
        token=change.token,
        text=tokenizer.decode([change.token]),
        logprob_change=change.logprob_change,
        before=change.probability_before,
        after=change.probability_after,
    )


def _median_rank(records: Sequence[DriftRecord], model: int, draws: RunMeans) -> float | None:
    """Over the run's tokens."""
    ranks = [(rank, record.pair) for record in records for rank in record.rank[model]]
    if not ranks:
        return None
    return draws.quantiles([rank for rank, _ in ranks], [pair for _, pair in ranks], [0.5])[0]
