"""Attribution records of single answers become shares, bands along the answer, tests of the method, and examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from rewardlm.config import InterpretSettings
from rewardlm.interpreting.answers import AnswerSample
from rewardlm.interpreting.findings import (
    Attribution,
    AttributionBand,
    AttributionChange,
    AttributionComparison,
    AttributionTransition,
    CompletenessFacts,
    Estimate,
    ExampleReading,
    ExplainedToken,
    FaithfulnessFacts,
    FaithfulnessScore,
    ModelShares,
    OwnAttributionChange,
)
from rewardlm.interpreting.intervals import Resampling, mean_of_known, stretches
from rewardlm.interpreting.records import AttributionRecord, FaithfulnessRecord
from rewardlm.interpreting.stratified import RunMeans, beyond_redraw, by_transition, transition_order, transitions_of
from rewardlm.interpreting.word_shares import kl_bits, shares
from rewardlm.measuring.measured import Measured
from rewardlm.stats import FloatArray

Quantity = Literal["prompt", "template", "answer", "entropy_bits"]
_ALONG: tuple[Literal["prompt", "entropy_bits"], ...] = ("prompt", "entropy_bits")


def attribution_summary(
    measured: Sequence[Measured],
    readers: Sequence[int],
    sample: AnswerSample,
    records: Sequence[AttributionRecord],
    tests: Sequence[FaithfulnessRecord],
    settings: InterpretSettings,
    draws: RunMeans,
) -> Attribution:
    """Shares of each of ``readers``, the models that could be asked, its changes from the baseline, bands along the
    answer, and how the method did."""
    own = [
        {record.pair: record for record in records if record.reader == record.author == model}
        for model in range(len(measured))
    ]
    return Attribution(
        method=settings.attribution.method,
        baseline=settings.attribution.baseline,
        explained_tokens=sum(len(record.positions) for record in records),
        completeness=_completeness(records, settings),
        faithfulness=_faithfulness(tests, settings),
        models=[_shares(measured[model].label, own[model], draws) for model in readers],
        comparisons=[_comparison(model, measured, sample, records, own, draws) for model in readers[1:]],
        bands=_bands(measured, readers, sample, records, own, draws),
        examples=_examples(measured, readers, sample, records),
    )


def _shares(label: str, own: dict[int, AttributionRecord], draws: RunMeans) -> ModelShares:
    def mean(name: Quantity) -> Estimate:
        return draws.mean([mean_of_known(_values(record, name)) for record in own.values()], list(own))

    return ModelShares(
        label=label,
        answers=len(own),
        prompt=mean("prompt"),
        template=mean("template"),
        answer=mean("answer"),
        entropy_bits=mean("entropy_bits"),
    )


def _bands(
    measured: Sequence[Measured],
    models: Sequence[int],
    sample: AnswerSample,
    records: Sequence[AttributionRecord],
    own: Sequence[dict[int, AttributionRecord]],
    draws: RunMeans,
) -> list[AttributionBand]:
    edges = stretches(max((max(record.positions) + 1 for record in records), default=0))
    bands = []
    for model in models:
        ways = transitions_of(sample, model)
        for transition in ["all", *(sorted(set(ways), key=transition_order) if model else [])]:
            mine = [record for pair, record in own[model].items() if transition in ("all", ways[pair])]
            for quantity in _ALONG:
                band = draws.along(
                    [value for record in mine for value in _values(record, quantity)],
                    [at for record in mine for at in record.positions],
                    [record.pair for record in mine for _ in record.positions],
                    edges,
                )
                bands.append(
                    AttributionBand(
                        label=measured[model].label,
                        transition=transition,
                        quantity=quantity,
                        answers=len(mine),
                        **dict(band),
                    )
                )
    return bands


def _comparison(
    model: int,
    measured: Sequence[Measured],
    sample: AnswerSample,
    records: Sequence[AttributionRecord],
    own: Sequence[dict[int, AttributionRecord]],
    draws: RunMeans,
) -> AttributionComparison:
    on_baseline = {record.pair: record for record in records if record.reader == model and record.author == 0}
    same = {pair: (own[0][pair], record) for pair, record in on_baseline.items() if pair in own[0]}
    each = {pair: (own[0][pair], record) for pair, record in own[model].items() if pair in own[0]}

    def change(name: Quantity) -> Estimate:
        values = {
            pair: mean_of_known(_values(after, name)) - mean_of_known(_values(before, name))
            for pair, (before, after) in each.items()
        }
        return draws.change(list(values.values()), list(values))

    def change_of_tokens(name: Quantity) -> dict[int, float]:
        # Token by token: if one model's was refused, the other's must not count alone.
        return {
            pair: mean_of_known(np.subtract(_values(after, name), _values(before, name)))
            for pair, (before, after) in same.items()
        }

    values = {
        "prompt_change": change_of_tokens("prompt"),
        "entropy_change": change_of_tokens("entropy_bits"),
        "kl_bits": {pair: mean_of_known(_divergence(before, after)) for pair, (before, after) in same.items()},
    }
    ways = transitions_of(sample, model)
    beyond = beyond_redraw(sample, ways, values, draws)
    return AttributionComparison(
        from_=measured[0].label,
        to=measured[model].label,
        same_tokens=AttributionChange(
            **{
                name: (draws.change if name.endswith("_change") else draws.mean)(list(found.values()), list(found))
                for name, found in values.items()
            }
        ),
        own_answers=OwnAttributionChange(prompt_change=change("prompt"), entropy_change=change("entropy_bits")),
        by_transition=[
            AttributionTransition(
                transition=way,
                pairs=pairs,
                **found,
                beyond_redraw=AttributionChange(**beyond[way]) if way in beyond else None,
            )
            for way, (pairs, found) in by_transition(ways, values, draws).items()
        ],
    )


def _divergence(before: AttributionRecord, after: AttributionRecord) -> FloatArray:
    """KL in bits from the baseline's attribution of a token to the other model's, Float[K]; NaN where one has none."""
    found = np.full(len(before.scores), np.nan)
    for k, (own, other) in enumerate(zip(before.scores, after.scores, strict=True)):
        if own is not None and other is not None:
            found[k] = kl_bits(shares(np.array([own])), shares(np.array([other])), np.array([len(own)]))[0]
    return found


def _completeness(records: Sequence[AttributionRecord], settings: InterpretSettings) -> CompletenessFacts | None:
    """How well scores add up where a method promises a sum: of the tokens that have scores the largest gap in nats and
    as a share of what it should be, and the median of steps; and how many were refused, with the first reasons."""
    known = [record.completeness for record in records if record.completeness is not None]
    if not known:
        return None
    refused = [reason for one in known for reason in one.refused if reason is not None]
    steps = [number for one in known for number in one.steps]
    kept = [
        (difference, gap, bound)
        for one in known
        for difference, gap, bound, reason in zip(one.difference, one.gap, one.bound, one.refused, strict=True)
        if reason is None
    ]
    return CompletenessFacts(
        tolerance=settings.attribution.tolerance,
        tokens=len(steps),
        refused=len(refused),
        reasons=refused[:3],
        largest_gap=max((abs(gap) for _, gap, _ in kept), default=None),
        # A difference of 0 has no share; such a token is kept only if it is reached exactly.
        largest_share=max((bound / abs(difference) for difference, _, bound in kept if difference), default=None),
        steps=float(np.median(steps)),
        most_steps=max(steps),
    )


def _faithfulness(tests: Sequence[FaithfulnessRecord], settings: InterpretSettings) -> FaithfulnessFacts | None:
    """Comprehensiveness and sufficiency of the method beside those of random orders, in nats; see ``faithfulness``.
    ``better`` is by how much the method is better than random, ``passes`` whether both are so by an interval above 0;
    None where too few prompts were tested for one."""
    if not tests:
        return None
    draws = Resampling(settings.n_resamples, settings.seed)
    owner = [record.pair for record in tests]

    def score(own: Sequence[float], random: Sequence[float], sign: int) -> FaithfulnessScore:
        better = [sign * (a - b) for a, b in zip(own, random, strict=True)]
        return FaithfulnessScore(
            method=draws.mean(own, owner), random=draws.mean(random, owner), better=draws.change(better, owner)
        )

    comprehensiveness = score(
        [record.comprehensiveness for record in tests], [record.random_comprehensiveness for record in tests], 1
    )
    sufficiency = score([record.sufficiency for record in tests], [record.random_sufficiency for record in tests], -1)
    ends = [comprehensiveness.better.ci95, sufficiency.better.ci95]
    return FaithfulnessFacts(
        tokens=len(tests),
        method=settings.attribution.method,
        comprehensiveness=comprehensiveness,
        sufficiency=sufficiency,
        passes=None if None in ends else all(end is not None and end[0] > 0 for end in ends),
    )


def _examples(
    measured: Sequence[Measured],
    models: Sequence[int],
    sample: AnswerSample,
    records: Sequence[AttributionRecord],
    number: int = 3,
) -> list[ExplainedToken]:
    """The baseline's answers whose toxicity fell most, and on which words each model rests one of their tokens."""
    fell = sorted(
        range(len(sample.pairs)), key=lambda pair: sample.pairs[pair].toxicity[-1] - sample.pairs[pair].toxicity[0]
    )
    shown = []
    for pair in fell[:number]:
        readers = {record.reader: record for record in records if record.pair == pair and record.author == 0}
        if len(readers) < len(models):
            continue
        first = readers[0]
        # The token whose log-probability fell most, of those that every model has scores of.
        change = np.subtract(readers[models[-1]].logprobs, first.logprobs)
        explained = [k for k in range(len(change)) if all(one.scores[k] is not None for one in readers.values())]
        if not explained:
            continue
        k = min(explained, key=lambda k: change[k])
        shown.append(
            ExplainedToken(
                toxicity=list(sample.pairs[pair].toxicity),
                token=first.explained[k],
                position=first.positions[k],
                words=first.words[: len(first.scores[k] or [])],
                models=[
                    ExampleReading(
                        label=measured[reader].label,
                        logprob=readers[reader].logprobs[k],
                        shares=np.nan_to_num(shares(np.array([readers[reader].scores[k]]))[0]).round(4).tolist(),
                    )
                    for reader in models
                ],
            )
        )
    return shown


def _values(record: AttributionRecord, name: Quantity) -> list[float]:
    """One a token, NaN where it was refused."""
    values: list[float | None] = getattr(record, name)
    return [float("nan") if value is None else value for value in values]
