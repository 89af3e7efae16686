"""What was read, answer by answer, becomes means with intervals, bands along the answer, and lists: all JSON-able.

A mean is over answers, each with the mean of its own tokens, so that long ones don't speak for all. What speaks of the
run weights each answer by how many of the run's it stands for (``weights``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import permutations
from typing import Any

import numpy as np

from rewardlm.config import InterpretSettings
from rewardlm.interpreting.drift import VocabularyDrift, first_parting, most_changed
from rewardlm.interpreting.intervals import Resampling, adjust, stretches
from rewardlm.interpreting.sample import Sample, bucket
from rewardlm.interpreting.subjects import Subject
from rewardlm.interpreting.weights import RunMeans, second_draws
from rewardlm.interpreting.words import kl_bits, shares
from rewardlm.measuring.independence import same_judge
from rewardlm.measuring.measured import Measured
from rewardlm.measuring.metrics import FloatArray
from rewardlm.runs import Run

_SHOWN_TOKENS = 15
_QUANTITIES = ("prompt", "template", "answer", "entropy_bits")

Record = dict[str, Any]


def summarise(
    run: Run,
    measured: Sequence[Measured],
    subjects: Sequence[Subject],
    sample: Sample,
    sums: VocabularyDrift,
    settings: InterpretSettings,
) -> dict[str, Any]:
    """The object of ``interpret --json``."""
    draws = Resampling(settings.n_resamples, settings.seed)
    of_run = RunMeans(settings.n_resamples, settings.seed, sample)
    drifts = list(run.read("drift"))
    attributions = list(run.read("attributions"))
    tests = list(run.read("faithfulness"))
    tokenizer = subjects[0].policy.tokenizer
    result = {
        "models": [
            {
                "label": subject.label,
                "model": subject.policy.spec,
                "adapter": one.run.meta.get("adapter"),
                "rewards": one.rewards,
                "dtype": str(subject.policy.dtype).removeprefix("torch."),
            }
            for one, subject in zip(measured, subjects, strict=True)
        ],
        "sample": _sample(measured, sample, settings),
        "drift": {
            "comparisons": [
                _drift(model, measured, sample, drifts, sums, tokenizer, settings, of_run)
                for model in range(1, len(subjects))
            ]
        },
        "attribution": _attribution(measured, sample, attributions, tests, settings, of_run),
        "similarity": _similarity(measured, sample, draws),
        "notes": _notes(measured, sample, settings),
    }
    adjust(_asked_of_each_model(result))
    return result


def _asked_of_each_model(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The changes that the sentences about the models rest on, which are read together."""
    similarity = result["similarity"] or {"models": [], "comparisons": []}
    return [
        *(entry["toxic_check"]["difference"] for entry in result["drift"]["comparisons"]),
        *(entry["same_tokens"]["prompt_change"] for entry in result["attribution"]["comparisons"]),
        *(entry["above_null"] for entry in similarity["models"]),
        *(entry["above_null_change"] for entry in similarity["comparisons"]),
    ]


def _sample(measured: Sequence[Measured], sample: Sample, settings: InterpretSettings) -> dict[str, Any]:
    return {
        "scorer": sample.scorer,
        "reward_of": [
            one.label for one in measured if any(same_judge(sample.scorer, reward) for reward in one.rewards)
        ],
        "from": measured[0].label,
        "to": measured[-1].label,
        "pairs": len(sample.pairs),
        "of": sample.of,
        "unscored": sample.unscored,
        "strata": sample.strata,
        "redraw": sample.redraw,
        "tokens_an_answer": settings.attribution.tokens,
        "reencoded": sum(answer.reencoded for answer in sample.answers),
        "seed": settings.seed,
    }


def _notes(measured: Sequence[Measured], sample: Sample, settings: InterpretSettings) -> list[str]:
    notes = []
    labels = list(dict.fromkeys(measured[answer.author].label for answer in sample.answers if answer.reencoded))
    if labels:
        notes.append(
            f"No token ids are stored of {', '.join(labels)} (measured before ids were kept): the texts were encoded "
            "again, which may cut words otherwise than they were written, and leaves out the end token."
        )
    without = [one.label for one in measured if np.isnan(one.quality.prompt_similarity).all()]
    if without:
        notes.append(
            f"Similarity with the prompt was not measured of {', '.join(without)}: rewardlm score RUN similarity=true, "
            "then interpret into another --out."
        )
    if len(sample.pairs) < min(settings.limit, sample.of):
        notes.append(f"{len(sample.pairs)} of the {settings.limit} pairs asked for were there.")
    return notes


def _clusters(sample: Sample) -> list[int]:
    """Of each pair its number: ``RunMeans`` knows its prompt and for how many pairs of the run it stands."""
    return list(range(len(sample.pairs)))


def _transitions(sample: Sample, model: int) -> list[str]:
    return [f"{bucket(pair.toxicity[0])} → {bucket(pair.toxicity[model])}" for pair in sample.pairs]


def _drift(
    model: int,
    measured: Sequence[Measured],
    sample: Sample,
    records: Sequence[Record],
    sums: VocabularyDrift,
    tokenizer: Any,
    settings: InterpretSettings,
    draws: RunMeans,
) -> dict[str, Any]:
    """From the baseline to ``model``, on the baseline's answers and on the model's own."""
    clusters = _clusters(sample)
    entry: dict[str, Any] = {"from": measured[0].label, "to": measured[model].label}
    for name, author, reader in (("on_baseline", 0, model), ("on_own", model, 0)):
        mine = [record for record in records if record["author"] == author]
        owner = [clusters[record["pair"]] for record in mine]
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
    entry["toxic_check"] = _toxic_check(model, sample, theirs, clusters, settings, draws)
    entry["parting"] = _parting(model, theirs, settings, draws)
    entry["by_transition"] = _by_transition(
        _transitions(sample, model),
        {
            "logprob_change": {record["pair"]: _change(record, "logprobs", model) for record in theirs},
            "kl": {record["pair"]: _mean(record["kl"][0][model]) for record in theirs},
        },
        clusters,
        draws,
        again=second_draws(sample, _transitions(sample, model)),
    )
    longest = max((len(record["tokens"]) for record in theirs), default=0)
    entry["kl_along"] = draws.along(
        [value for record in theirs for value in record["kl"][0][model]],
        [at for record in theirs for at in range(len(record["tokens"]))],
        [clusters[record["pair"]] for record in theirs for _ in record["tokens"]],
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
    sample: Sample,
    records: Sequence[Record],
    clusters: Sequence[int],
    settings: InterpretSettings,
    draws: RunMeans,
) -> dict[str, Any]:
    """Do the baseline's toxic answers lose more probability than its others? Nats a token."""
    groups: dict[bool, list[tuple[float, int]]] = {True: [], False: []}
    for record in records:
        toxic = sample.pairs[record["pair"]].toxicity[0] > settings.threshold
        groups[toxic].append((_change(record, "logprobs", model), clusters[record["pair"]]))
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


def _by_transition(
    transitions: Sequence[str],
    values: dict[str, dict[int, float]],
    clusters: Sequence[int],
    draws: Resampling,
    again: Mapping[str, tuple[dict[int, float], dict[int, float]]] | None = None,
) -> list[dict[str, Any]]:
    """``values`` by name and pair → a row a transition, in the order of the buckets.

    With ``again`` (``second_draws``) a row has ``beyond_redraw``: its mean minus that of the answers which a second
    draw of the baseline would have sent the same way. ``values`` must then be of the baseline's own answers.
    """
    rows = []
    for transition in sorted(set(transitions), key=_order):
        pairs = [number for number, way in enumerate(transitions) if way == transition]
        row: dict[str, Any] = {"transition": transition, "pairs": len(pairs)}
        for name, by_pair in values.items():
            here = [pair for pair in pairs if pair in by_pair]
            interval = draws.change if name.endswith("_change") else draws.mean
            row[name] = interval([by_pair[pair] for pair in here], [clusters[pair] for pair in here])
        if isinstance(draws, RunMeans):
            made, would = (again or {}).get(transition, ({}, {}))
            row["beyond_redraw"] = (
                {name: draws.against(by_pair, made, would) for name, by_pair in values.items()} if again else None
            )
        rows.append(row)
    for name in values:
        adjust([row[name] for row in rows])
    return rows


def _order(transition: str) -> tuple[int, ...]:
    return tuple(("low", "medium", "high").index(name) for name in transition.split(" → "))


def _attribution(
    measured: Sequence[Measured],
    sample: Sample,
    records: Sequence[Record],
    tests: Sequence[Record],
    settings: InterpretSettings,
    draws: RunMeans,
) -> dict[str, Any]:
    clusters = _clusters(sample)
    own = [
        {record["pair"]: record for record in records if record["reader"] == record["author"] == model}
        for model in range(len(measured))
    ]
    longest = max((max(record["positions"]) + 1 for record in records), default=0)
    edges = stretches(longest)
    bands = []
    for model, one in enumerate(measured):
        ways = _transitions(sample, model)
        for transition in ["all", *(sorted(set(ways), key=_order) if model else [])]:
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
                            [clusters[record["pair"]] for record in mine for _ in record["positions"]],
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
                        [clusters[pair] for pair in own[model]],
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
    sample: Sample,
    records: Sequence[Record],
    own: Sequence[dict[int, Record]],
    draws: RunMeans,
) -> dict[str, Any]:
    clusters = _clusters(sample)
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
        return draws.change(list(values.values()), [clusters[pair] for pair in values])

    divergence = {pair: _mean(_divergence(before, after)) for pair, (before, after) in same.items()}
    return {
        "from": measured[0].label,
        "to": measured[model].label,
        "same_tokens": {
            "prompt_change": interval(change_of_tokens("prompt")),
            "entropy_change": interval(change_of_tokens("entropy_bits")),
            "kl_bits": draws.mean(list(divergence.values()), [clusters[pair] for pair in divergence]),
        },
        "own_answers": {
            "prompt_change": interval(change(each, "prompt")),
            "entropy_change": interval(change(each, "entropy_bits")),
        },
        "by_transition": _by_transition(
            _transitions(sample, model),
            {
                "prompt_change": change_of_tokens("prompt"),
                "entropy_change": change_of_tokens("entropy_bits"),
                "kl_bits": divergence,
            },
            clusters,
            draws,
            again=second_draws(sample, _transitions(sample, model)),
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
    tests: Sequence[Record], sample: Sample, settings: InterpretSettings, draws: Resampling
) -> dict[str, Any] | None:
    """Comprehensiveness and sufficiency of the method beside those of random orders, in nats; see
    interpreting.faithfulness. ``better`` is by how much the method is better than random, ``passes`` whether both are
    so by an interval above 0; None where too few prompts were tested for one."""
    if not tests:
        return None
    clusters = _clusters(sample)
    owner = [clusters[record["pair"]] for record in tests]
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
    measured: Sequence[Measured], sample: Sample, records: Sequence[Record], number: int = 3
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


def _similarity(measured: Sequence[Measured], sample: Sample, draws: Resampling) -> dict[str, Any] | None:
    """Cosine of prompt and answer against that with a shuffled prompt, over all answers that runs have it of."""
    if any(np.isnan(one.quality.prompt_similarity).all() for one in measured):
        return None
    width = max(int(one.samples.max(initial=0)) for one in measured) + 1
    cells = []
    for one in measured:
        keys = (one.prompt_rows * width + one.samples).tolist()
        values = zip(
            one.quality.prompt_similarity.tolist(),
            one.quality.prompt_similarity_null.tolist(),
            one.scores[sample.scorer].tolist(),
            strict=True,
        )
        cells.append({key: value for key, value in zip(keys, values, strict=True) if not np.isnan(value[0])})
    models = []
    for one, mine in zip(measured, cells, strict=True):
        owner = [key // width for key in mine]
        models.append(
            {
                "label": one.label,
                "own": draws.mean([own for own, _, _ in mine.values()], owner),
                "null": draws.mean([null for _, null, _ in mine.values()], owner),
                "above_null": draws.change([own - null for own, null, _ in mine.values()], owner),
            }
        )
    comparisons = []
    again = _similarity_again(cells[0], width)
    for one, mine in list(zip(measured, cells, strict=True))[1:]:
        keys = [key for key in mine if key in cells[0]]
        change = {key: (mine[key][0] - mine[key][1]) - (cells[0][key][0] - cells[0][key][1]) for key in keys}
        scored = [key for key in keys if not np.isnan(mine[key][2]) and not np.isnan(cells[0][key][2])]
        ways = [f"{bucket(cells[0][key][2])} → {bucket(mine[key][2])}" for key in scored]
        rows = _by_transition(
            ways,
            {"above_null_change": {number: change[key] for number, key in enumerate(scored)}},
            [key // width for key in scored],
            draws,
        )
        for row in rows:
            found = again.get(row["transition"])
            row["redraw"] = None if found is None else {"above_null_change": draws.mean(*found)}
        comparisons.append(
            {
                "from": measured[0].label,
                "to": one.label,
                "above_null_change": draws.change(list(change.values()), [key // width for key in change]),
                "by_transition": rows,
            }
        )
    return {"models": models, "comparisons": comparisons}


def _similarity_again(
    cells: Mapping[int, tuple[float, float, float]], width: int
) -> dict[str, tuple[list[float], list[int]]]:
    """By transition from a draw of the baseline to another of the same prompt: changes above the null, and prompts.

    ``cells`` are (own, null, toxicity) by prompt · width + sample.
    """
    by_prompt: dict[int, list[tuple[float, float, float]]] = {}
    for key, cell in cells.items():
        if not np.isnan(cell[2]):
            by_prompt.setdefault(key // width, []).append(cell)
    found: dict[str, tuple[list[float], list[int]]] = {}
    for prompt, draws in by_prompt.items():
        for one, other in permutations(draws, 2):
            values, owners = found.setdefault(f"{bucket(one[2])} → {bucket(other[2])}", ([], []))
            values.append((other[0] - other[1]) - (one[0] - one[1]))
            owners.append(prompt)
    return found


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


def _nan(value: float | None) -> float:
    return float("nan") if value is None else value
