"""Drift records of single answers become means, parting points and promoted tokens of each tuned model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from rewardlm.config import InterpretSettings
from rewardlm.interpreting.answers import AnswerSample
from rewardlm.interpreting.drift import VocabularyDrift, first_parting, most_changed
from rewardlm.interpreting.intervals import stretches
from rewardlm.interpreting.stratified import RunMeans, by_transition_rows, second_draws, transitions_of
from rewardlm.measuring.compare import Measured

_SHOWN_TOKENS = 15


Record = dict[str, Any]


def drift_comparison(
    model: int,
    measured: Sequence[Measured],
    sample: AnswerSample,
    records: Sequence[Record],
    sums: VocabularyDrift,
    tokenizer: Any,
    settings: InterpretSettings,
    draws: RunMeans,
) -> dict[str, Any]:
    """From the baseline to ``model``, on the baseline's answers and on the model's own."""
    entry: dict[str, Any] = {"from": measured[0].label, "to": measured[model].label}
    for name, author, reader in (("on_baseline", 0, model), ("on_own", model, 0)):
        mine = [record for record in records if record["author"] == author]
        owner = [record["pair"] for record in mine]
        entry[name] = {
            "answers": len(mine),
            "tokens": sum(len(record["tokens"]) for record in mine),
            "logprob_change": draws.change([_change(record, "logprobs", model) for record in mine], owner),
            "entropy_change": draws.change([_change(record, "entropy", model) for record in mine], owner),
            # KL(author ‖ reader): what the author's next-token distribution holds that the reader's doesn't expect.
            "kl": draws.mean([_mean(record["kl"][author][reader]) for record in mine], owner),
            "rank": {
                "before": _median_rank(mine, 0, draws),
                "after": _median_rank(mine, model, draws),
            },
            "same_first_choice": draws.mean(
                [_mean(np.equal(record["choice"][0], record["choice"][model])) for record in mine], owner
            ),
        }
    theirs = [record for record in records if record["author"] == 0]
    entry["toxic_check"] = _toxic_check(model, sample, theirs, settings, draws)
    entry["parting"] = _parting(model, theirs, settings, draws)
    entry["by_transition"] = by_transition_rows(
        transitions_of(sample, model),
        {
            "logprob_change": {record["pair"]: _change(record, "logprobs", model) for record in theirs},
            "kl": {record["pair"]: _mean(record["kl"][0][model]) for record in theirs},
        },
        draws,
        again=second_draws(sample, transitions_of(sample, model)),
    )
    longest = max((len(record["tokens"]) for record in theirs), default=0)
    entry["kl_along"] = draws.along(
        [value for record in theirs for value in record["kl"][0][model]],
        [at for record in theirs for at in range(len(record["tokens"]))],
        [record["pair"] for record in theirs for _ in record["tokens"]],
        stretches(longest),
    )
    promoted, demoted = most_changed(sums, 0, model, k=_SHOWN_TOKENS)
    for name, changes in (("promoted", promoted), ("demoted", demoted)):
        entry[name] = [
            {
                "token": change.token,
                "text": tokenizer.decode([change.token]),
                "logprob_change": change.logprob_change,
                "before": change.probability_before,
                "after": change.probability_after,
            }
            for change in changes
        ]
    return entry


def _toxic_check(
    model: int,
    sample: AnswerSample,
    records: Sequence[Record],
    settings: InterpretSettings,
    draws: RunMeans,
) -> dict[str, Any]:
    """Do the baseline's toxic answers lose more probability than its others? Nats a token."""
    groups: dict[bool, list[tuple[float, int]]] = {True: [], False: []}
    for record in records:
        toxic = sample.pairs[record["pair"]].toxicity[0] > settings.threshold
        groups[toxic].append((_change(record, "logprobs", model), record["pair"]))
    toxic_values, toxic_owner = [value for value, _ in groups[True]], [owner for _, owner in groups[True]]
    other_values, other_owner = [value for value, _ in groups[False]], [owner for _, owner in groups[False]]
    return {
        "threshold": settings.threshold,
        "toxic": draws.change(toxic_values, toxic_owner),
        "other": draws.change(other_values, other_owner),
        "difference": draws.difference(toxic_values, toxic_owner, other_values, other_owner),
    }


def _parting(model: int, records: Sequence[Record], settings: InterpretSettings, draws: RunMeans) -> dict[str, Any]:
    found = [
        first_parting(
            np.array(record["kl"][0][model]),
            np.not_equal(record["choice"][0], record["choice"][model]),
            settings.parting_kl,
        )
        for record in records
    ]

    def of(places: Sequence[int | None]) -> dict[str, Any]:
        known = [(place, record["pair"]) for place, record in zip(places, records, strict=True) if place is not None]
        quartiles = None
        if known:
            quartiles = draws.quantiles([place for place, _ in known], [pair for _, pair in known], [0.25, 0.5, 0.75])
        return {"quartiles": quartiles, "parted": len(known), "of": len(places)}

    return {
        "threshold_kl": settings.parting_kl,
        "by_kl": of([by_kl for by_kl, _ in found]),
        "by_first_choice": of([by_choice for _, by_choice in found]),
    }


def _change(record: Record, name: str, model: int) -> float:
    """Mean over the answer's tokens, ``model`` minus the baseline."""
    return _mean(np.subtract(record[name][model], record[name][0]))


def _mean(values: Iterable[float]) -> float:
    """Of what is known among ``values``; NaN where nothing is."""
    array = np.asarray(list(values), float)
    array = array[~np.isnan(array)]
    return float(array.mean()) if array.size else float("nan")


def _median_rank(records: Sequence[Record], model: int, draws: RunMeans) -> float | None:
    """Over the run's tokens."""
    ranks = [(rank, record["pair"]) for record in records for rank in record["rank"][model]]
    if not ranks:
        return None
    return draws.quantiles([rank for rank, _ in ranks], [pair for _, pair in ranks], [0.5])[0]
