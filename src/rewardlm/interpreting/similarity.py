"""Are answers about their prompts? Stored similarities, compared with shuffled prompts, by model and transition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations

import numpy as np

from rewardlm.interpreting.answers import AnswerSample, bucket
from rewardlm.interpreting.findings import (
    ModelSimilarity,
    SimilarityComparison,
    SimilarityFacts,
    SimilarityRedraw,
    SimilarityTransition,
)
from rewardlm.interpreting.intervals import Resampling
from rewardlm.interpreting.stratified import by_transition
from rewardlm.measuring.measured import Measured


def similarity(measured: Sequence[Measured], sample: AnswerSample, draws: Resampling) -> SimilarityFacts | None:
    """Cosine of prompt and answer, minus that with a shuffled prompt, over all answers that have it."""
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
            ModelSimilarity(
                label=one.label,
                own=draws.mean([own for own, _, _ in mine.values()], owner),
                null=draws.mean([null for _, null, _ in mine.values()], owner),
                above_null=draws.change([own - null for own, null, _ in mine.values()], owner),
            )
        )
    comparisons = []
    again = _similarity_again(cells[0], width)
    for one, mine in list(zip(measured, cells, strict=True))[1:]:
        keys = [key for key in mine if key in cells[0]]
        change = {key: (mine[key][0] - mine[key][1]) - (cells[0][key][0] - cells[0][key][1]) for key in keys}
        scored = [key for key in keys if not np.isnan(mine[key][2]) and not np.isnan(cells[0][key][2])]
        ways = [f"{bucket(cells[0][key][2])} → {bucket(mine[key][2])}" for key in scored]
        rows = by_transition(
            ways,
            {"above_null_change": {number: change[key] for number, key in enumerate(scored)}},
            draws,
            clusters=[key // width for key in scored],
        )
        redraws = {way: SimilarityRedraw(above_null_change=draws.mean(*again[way])) for way in rows if way in again}
        comparisons.append(
            SimilarityComparison(
                from_=measured[0].label,
                to=one.label,
                above_null_change=draws.change(list(change.values()), [key // width for key in change]),
                by_transition=[
                    SimilarityTransition(transition=way, pairs=pairs, **found, redraw=redraws.get(way))
                    for way, (pairs, found) in rows.items()
                ],
            )
        )
    return SimilarityFacts(models=models, comparisons=comparisons)


def _similarity_again(
    cells: Mapping[int, tuple[float, float, float]], width: int
) -> dict[str, tuple[list[float], list[int]]]:
    """The same change from one draw of the baseline to another of the same prompt, by transition: changes and prompts.

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
