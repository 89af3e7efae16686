"""Attribution records of single answers become shares, bands along the answer, tests of the method, and examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rewardlm.config import InterpretSettings
from rewardlm.interpreting.answers import AnswerSample
from rewardlm.interpreting.drift_summary import Record, _mean
from rewardlm.interpreting.intervals import Resampling, stretches
from rewardlm.interpreting.stratified import (
    RunMeans,
    by_transition_rows,
    second_draws,
    transition_order,
    transitions_of,
)
from rewardlm.interpreting.word_shares import kl_bits, shares
from rewardlm.measuring.compare import Measured
from rewardlm.measuring.metrics import FloatArray

_QUANTITIES = ("prompt", "template", "answer", "entropy_bits")


def attribution_summary(
    measured: Sequence[Measured],
    sample: AnswerSample,
    records: Sequence[Record],
    tests: Sequence[Record],
    settings: InterpretSettings,
    draws: RunMeans,
) -> dict[str, Any]:
    """Shares of each model, its changes from the baseline, bands along the answer, and how the method did."""
    own = [
        {record["pair"]: record for record in records if record["reader"] == record["author"] == model}
        for model in range(len(measured))
    ]
    longest = max((max(record["positions"]) + 1 for record in records), default=0)
    edges = stretches(longest)
    bands = []
    for model, one in enumerate(measured):
        ways = transitions_of(sample, model)
        for transition in ["all", *(sorted(set(ways), key=transition_order) if model else [])]:
            mine = [record for pair, record in own[model].items() if transition in ("all", ways[pair])]
            for name in ("prompt", "entropy_bits"):
                bands.append(
                    {
                        "label": one.label,
                        "transition": transition,
                        "quantity": name,
                        "answers": len(mine),
                        **draws.along(
                            [_nan(value) for record in mine for value in record[name]],
                            [at for record in mine for at in record["positions"]],
                            [record["pair"] for record in mine for _ in record["positions"]],
                            edges,
                        ),
                    }
                )
    return {
        "method": settings.attribution.method,
        "baseline": settings.attribution.baseline,
        "explained_tokens": sum(len(record["positions"]) for record in records),
        "completeness": _completeness(records, settings),
        "faithfulness": _faithfulness(tests, sample, settings, Resampling(settings.n_resamples, settings.seed)),
        "models": [
            {
                "label": one.label,
                "answers": len(own[model]),
                **{
                    name: draws.mean(
                        [_mean(map(_nan, record[name])) for record in own[model].values()],
                        list(own[model]),
                    )
                    for name in _QUANTITIES
                },
            }
            for model, one in enumerate(measured)
        ],
        "comparisons": [
            _attribution_change(model, measured, sample, records, own, draws) for model in range(1, len(measured))
        ],
        "bands": bands,
        "examples": _examples(measured, sample, records),
    }


def _attribution_change(
    model: int,
    measured: Sequence[Measured],
    sample: AnswerSample,
    records: Sequence[Record],
    own: Sequence[dict[int, Record]],
    draws: RunMeans,
) -> dict[str, Any]:
    on_baseline = {record["pair"]: record for record in records if record["reader"] == model and record["author"] == 0}
    same = {pair: (own[0][pair], record) for pair, record in on_baseline.items() if pair in own[0]}
    each = {pair: (own[0][pair], record) for pair, record in own[model].items() if pair in own[0]}

    def change(couples: dict[int, tuple[Record, Record]], name: str) -> dict[int, float]:
        return {
            pair: _mean(map(_nan, after[name])) - _mean(map(_nan, before[name]))
            for pair, (before, after) in couples.items()
        }

    def change_of_tokens(name: str) -> dict[int, float]:
        # Token by token: where one model's was refused, the other's must not count alone.
        return {
            pair: _mean(_nan(b) - _nan(a) for a, b in zip(before[name], after[name], strict=True))
            for pair, (before, after) in same.items()
        }

    def interval(values: dict[int, float]) -> dict[str, Any]:
        return draws.change(list(values.values()), list(values))

    divergence = {pair: _mean(_divergence(before, after)) for pair, (before, after) in same.items()}
    return {
        "from": measured[0].label,
        "to": measured[model].label,
        "same_tokens": {
            "prompt_change": interval(change_of_tokens("prompt")),
            "entropy_change": interval(change_of_tokens("entropy_bits")),
            "kl_bits": draws.mean(list(divergence.values()), list(divergence)),
        },
        "own_answers": {
            "prompt_change": interval(change(each, "prompt")),
            "entropy_change": interval(change(each, "entropy_bits")),
        },
        "by_transition": by_transition_rows(
            transitions_of(sample, model),
            {
                "prompt_change": change_of_tokens("prompt"),
                "entropy_change": change_of_tokens("entropy_bits"),
                "kl_bits": divergence,
            },
            draws,
            again=second_draws(sample, transitions_of(sample, model)),
        ),
    }


def _divergence(before: Record, after: Record) -> FloatArray:
    """KL in bits from the baseline's attribution of a token to the other model's, Float[K]; NaN where one has none."""
    found = np.full(len(before["scores"]), np.nan)
    for k, couple in enumerate(zip(before["scores"], after["scores"], strict=True)):
        if None not in couple:
            one, other = (shares(np.array([row])) for row in couple)
            found[k] = kl_bits(one, other, np.array([len(couple[0])]))[0]
    return found


def _completeness(records: Sequence[Record], settings: InterpretSettings) -> dict[str, Any] | None:
    """How well scores add up where a method promises a sum: of the tokens that have scores the largest gap in nats and
    as a share of what it should be, and the median of steps; and how many were refused, with the first reasons."""
    known = [record["completeness"] for record in records if record.get("completeness") is not None]
    if not known:
        return None
    tokens = [dict(zip(one, values, strict=True)) for one in known for values in zip(*one.values(), strict=True)]
    kept = [token for token in tokens if token["refused"] is None]
    refused = [token["refused"] for token in tokens if token["refused"] is not None]
    return {
        "tolerance": settings.attribution.tolerance,
        "tokens": len(tokens),
        "refused": len(refused),
        "reasons": refused[:3],
        "largest_gap": max((abs(token["gap"]) for token in kept), default=None),
        # Of a difference of 0 there is no share; such a token is kept only where it is reached exactly.
        "largest_share": max(
            (token["bound"] / abs(token["difference"]) for token in kept if token["difference"]), default=None
        ),
        "steps": float(np.median([token["steps"] for token in tokens])),
        "most_steps": max(token["steps"] for token in tokens),
    }


def _faithfulness(
    tests: Sequence[Record], sample: AnswerSample, settings: InterpretSettings, draws: Resampling
) -> dict[str, Any] | None:
    """Comprehensiveness and sufficiency of the method beside those of random orders, in nats; see
    interpreting.faithfulness. ``better`` is by how much the method is better than random, ``passes`` whether both are
    so by an interval above 0; None where too few prompts were tested for one."""
    if not tests:
        return None
    owner = [record["pair"] for record in tests]
    found: dict[str, Any] = {"tokens": len(tests), "method": settings.attribution.method}
    for name, sign in (("comprehensiveness", 1), ("sufficiency", -1)):
        own, random = ([record[key] for record in tests] for key in (name, f"random_{name}"))
        found[name] = {
            "method": draws.mean(own, owner),
            "random": draws.mean(random, owner),
            "better": draws.change([sign * (a - b) for a, b in zip(own, random, strict=True)], owner),
        }
    ends = [found[name]["better"]["ci95"] for name in ("comprehensiveness", "sufficiency")]
    found["passes"] = None if None in ends else all(low > 0 for low, _ in ends)
    return found


def _examples(
    measured: Sequence[Measured], sample: AnswerSample, records: Sequence[Record], number: int = 3
) -> list[dict[str, Any]]:
    """The baseline's answers whose toxicity fell most, and on which words each model rests one of their tokens."""
    fell = sorted(
        range(len(sample.pairs)), key=lambda pair: sample.pairs[pair].toxicity[-1] - sample.pairs[pair].toxicity[0]
    )
    shown = []
    for pair in fell[:number]:
        readers = {record["reader"]: record for record in records if record["pair"] == pair and record["author"] == 0}
        if len(readers) < len(measured):
            continue
        # The token whose log-probability fell most, of those that every model has scores of.
        change = np.subtract(readers[len(measured) - 1]["logprobs"], readers[0]["logprobs"])
        explained = [
            k for k in range(len(change)) if all(reader["scores"][k] is not None for reader in readers.values())
        ]
        if not explained:
            continue
        k = min(explained, key=lambda k: change[k])
        first = readers[0]
        n = len(first["scores"][k])
        shown.append(
            {
                "toxicity": list(sample.pairs[pair].toxicity),
                "token": first["explained"][k],
                "position": first["positions"][k],
                "words": first["words"][:n],
                "models": [
                    {
                        "label": one.label,
                        "logprob": readers[reader]["logprobs"][k],
                        "shares": np.nan_to_num(shares(np.array([readers[reader]["scores"][k]]))[0]).round(4).tolist(),
                    }
                    for reader, one in enumerate(measured)
                ],
            }
        )
    return shown


def _nan(value: float | None) -> float:
    return float("nan") if value is None else value
