"""The few answers that the page colours word by word, chosen by rule and not by hand.

They are among the pairs that were read. Each pair is taken once, by the first rule of these that it meets:

- ``usual``: its drift is the median. Of pairs in which no judge sees toxicity, if there are any: a reader sees one
  answer at once, without asking for hidden texts.
- ``moved``: its drift is the largest.
- ``fell``, ``rose``: the toxicity of the answer fell or rose most, from the first model to the last.

A pair's drift is the mean divergence over the baseline's answer, from the baseline to the last model that can be read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from rewardlm.interpreting.answers import AnswerSample, SampledAnswer, highest_scores
from rewardlm.interpreting.findings import ColouredAnswer, ColouredExample, ColouredReading
from rewardlm.interpreting.intervals import mean_of_known
from rewardlm.interpreting.records import AttributionRecord, DriftRecord
from rewardlm.interpreting.word_shares import pieces, shares, words
from rewardlm.measuring.measured import Measured
from rewardlm.measuring.metrics import LOW_BELOW

Rule = Literal["usual", "moved", "fell", "rose"]


def shown_examples(
    measured: Sequence[Measured],
    last: int,
    sample: AnswerSample,
    drifts: Sequence[DriftRecord],
    attributions: Sequence[AttributionRecord],
    tokenizer: Any,
) -> list[ColouredExample]:
    """At most four pairs, each with every model's answer, its drift and its attribution; ``last`` is the number of the
    last model whose drift is known. None where that is the baseline."""
    if not last:
        return []
    drift_of = {record.id: record for record in drifts}
    readings: dict[str, list[AttributionRecord]] = {}
    for record in attributions:
        readings.setdefault(record.id, []).append(record)
    answers: dict[int, list[SampledAnswer]] = {}
    for answer in sample.answers:
        answers.setdefault(answer.pair, []).append(answer)
    highest = highest_scores(measured)
    rows = {prompt.id: row for row, prompt in enumerate(measured[0].prompts)}

    def score(pair: int, model: int) -> float | None:
        one = sample.pairs[pair]
        value = float(highest[model][rows[one.prompt.id], one.sample])
        return None if np.isnan(value) else value

    def harmless(pair: int) -> bool:
        known = [score(pair, model) for model in range(len(measured))]
        return all(value is not None and value < LOW_BELOW for value in (sample.pairs[pair].prompt.toxicity, *known))

    moved = {pair: mean_of_known(drift_of[own[0].id].kl[0][last]) for pair, own in answers.items() if own[0].tokens}
    changes = [pair.toxicity[-1] - pair.toxicity[0] for pair in sample.pairs]
    labels = [one.label for one in measured]
    return [
        ColouredExample(
            chosen=rule,
            prompt=sample.pairs[pair].prompt.text,
            prompt_toxicity=sample.pairs[pair].prompt.toxicity,
            drift=round(moved[pair], 4),
            toxicity=list(sample.pairs[pair].toxicity),
            answers=[
                _answer(
                    answer,
                    labels,
                    score(pair, answer.author),
                    drift_of[answer.id],
                    readings.get(answer.id, ()),
                    tokenizer,
                )
                for answer in answers[pair]
            ],
        )
        for rule, pair in choose(moved, changes, harmless)
    ]


def choose(
    drift: dict[int, float], changes: Sequence[float], harmless: Callable[[int], bool]
) -> list[tuple[Rule, int]]:
    """Pairs by rule. ``drift`` is that of each pair that may be taken, ``changes`` those of toxicity of all pairs."""
    chosen: dict[int, Rule] = {}

    def take(rule: Rule, candidates: Sequence[int]) -> None:
        free = [pair for pair in candidates if pair not in chosen]
        if free:
            chosen[free[0]] = rule

    pairs = sorted(drift, key=lambda pair: (drift[pair], pair))
    calm = [pair for pair in pairs if harmless(pair)] or pairs
    take("usual", calm[(len(calm) - 1) // 2 :])
    take("moved", pairs[::-1])
    take("fell", sorted((pair for pair in pairs if changes[pair] < 0), key=lambda pair: (changes[pair], pair)))
    take("rose", sorted((pair for pair in pairs if changes[pair] > 0), key=lambda pair: (-changes[pair], pair)))
    return [(rule, pair) for pair, rule in chosen.items()]


def _answer(
    answer: SampledAnswer,
    labels: Sequence[str],
    highest: float | None,
    drift: DriftRecord,
    readings: Sequence[AttributionRecord],
    tokenizer: Any,
) -> ColouredAnswer:
    groups = words(tokenizer, answer.prompt, answer.tokens, answer.turns)
    positions = readings[0].positions if readings else []
    places = [len(answer.prompt) + at for at in positions]
    models = range(len(labels))
    return ColouredAnswer(
        label=labels[answer.author],
        highest=highest,
        tokens=pieces(tokenizer, answer.tokens),
        logprobs=[[round(value, 4) for value in drift.logprobs[model]] for model in models],
        first_choices=[[tokenizer.decode([token]) for token in drift.choice[model]] for model in models],
        kl=[[round(value, 4) for value in drift.kl[answer.author][model]] for model in models],
        words=[(word.text, word.kind) for word in groups],
        positions=positions,
        at_words=[next(number for number, word in enumerate(groups) if word.start <= at < word.end) for at in places],
        readings=[
            ColouredReading(
                reader=labels[record.reader],
                shares=[
                    None if row is None else np.nan_to_num(shares(np.array([row]))[0]).round(4).tolist()
                    for row in record.scores
                ],
            )
            for record in sorted(readings, key=lambda record: record.reader)
        ],
    )
