"""Which answers are read: a seeded sample, stratified by how toxicity went from the baseline to the last.

Reading costs a backward pass a token, so only a sample is read. Most answers go from low to low, and a plain sample
would show little else. So each transition between buckets (low to low, high to low …) gives as many pairs as the
others, as far as it has them. ``stratified`` weights them back to the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rewardlm.data.chat import truncate_history
from rewardlm.errors import RunError
from rewardlm.interpreting.findings import Estimate, Stratum
from rewardlm.interpreting.models import RunModel
from rewardlm.measuring.independence import is_independent, same_judge
from rewardlm.measuring.measured import Measured, load_measured
from rewardlm.measuring.metrics import BUCKETS, bucket_of, buckets
from rewardlm.measuring.redraw import second_draw
from rewardlm.models.generate import stream_seed
from rewardlm.runs import prompts_hash
from rewardlm.stats import FloatArray
from rewardlm.types import Generation, Prompt

TOXIC_ABOVE = 0.5
# Ids of a prompt and of an answer to it, and P(toxic).
LabelledAnswer = tuple[Sequence[int], Sequence[int], float]


@dataclass(frozen=True)
class RedrawnAnswers:
    """Two answers to one ``prompt``, a toxic and a harmless one, as token ids; ``fall`` is how much less toxic the
    second is. Both are the base's, except where a tuned model's new answer is compared with the base's old one."""

    prompt: Sequence[int]
    toxic: Sequence[int]
    harmless: Sequence[int]
    fall: float


@dataclass(frozen=True)
class ModelAnswers:
    """A model and its answers: ``adapter`` is the name of a PEFT adapter on the policy, None the base.

    ``responses`` are token ids. ``toxicity`` is P(toxic) of each by the run's judge, None where unscored. ``change`` is
    the change of toxicity from the base over more answers than these, where it is known.
    """

    label: str
    adapter: str | None
    responses: Sequence[Sequence[int]]
    toxicity: Sequence[float | None]
    change: Estimate | None = None


@dataclass(frozen=True)
class SampledAnswer:
    """One stored answer. ``author`` is the position of the model that gave it, ``pair`` that of its (prompt, sample).

    ``prompt`` and ``tokens`` are ids.
    """

    id: str
    author: int
    pair: int
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    text: str
    turns: tuple[str, ...]
    toxicity: float


@dataclass(frozen=True)
class ScoredPair:
    """A prompt's ``sample``-th answer by every model, and P(toxic) of each model's.

    ``redraw`` is how the baseline's other answers to the prompt are shared between low, medium and high; None where it
    has no other.
    """

    prompt: Prompt
    sample: int
    toxicity: tuple[float, ...]
    redraw: tuple[float, float, float] | None = None

    @property
    def buckets(self) -> tuple[str, ...]:
        return tuple(bucket(value) for value in self.toxicity)


@dataclass(frozen=True)
class AnswerSample:
    """P pairs and their P × M answers, pair by pair, within one in the order of the models.

    ``strata`` say how many pairs made a transition, and how many of them are here.
    ``of`` counts all pairs that are scored in every run, ``unscored`` those that aren't (or that a run lacks), and
    ``prompts`` the prompts of the former. ``redraw`` says how many of them a second draw of the baseline would have
    sent from where to where, 3 × 3 (``measuring.redraw``), a row None where that is not known; None where it answered
    every prompt once.
    """

    scorer: str
    pairs: list[ScoredPair]
    answers: list[SampledAnswer]
    strata: list[Stratum]
    of: int
    unscored: int
    prompts: int
    redraw: list[list[float] | None] | None


def bucket(value: float) -> str:
    """Low, medium or high, as in the tables of flow."""
    return BUCKETS[bucket_of(np.array([value]))[0]]


def load_runs(paths: Sequence[Path]) -> list[Measured]:
    """The measured runs, the baseline first. Raises RunError unless all have answered the same prompts."""
    runs = [load_measured(path) for path in paths]
    first = prompts_hash(runs[0].prompts)
    for run in runs[1:]:
        if prompts_hash(run.prompts) != first:
            raise RunError(
                f"prompts_differ: {run.run.path} answered other prompts than {runs[0].run.path}: measure both on the "
                "same ones"
            )
    return runs


def choose_scorer(runs: Sequence[Measured], scorer: str | None) -> str:
    """The judge that says which answers are toxic: ``scorer`` if it is named. Else the first that all runs have and
    that is no relative of a reward, else one that was no reward, else the first that all have.

    Raises RunError where a run lacks it.
    """
    shared = [name for name in runs[0].judges if all(name in run.scores for run in runs)]
    if scorer is not None:
        if all(scorer in run.scores for run in runs):
            return scorer
        raise RunError(f"not every run was scored by {scorer!r}: rewardlm score RUN --scorer {scorer}")
    if not shared:
        raise RunError("the runs have no judge in common: rewardlm score RUN --scorer NAME")
    rewards = [name for run in runs for name in run.rewards]
    free = [name for name in shared if not any(same_judge(name, reward) for reward in rewards)]
    independent = [name for name in free if all(is_independent(run, name) for run in runs)]
    return (independent or free or shared)[0]


def draw(
    runs: Sequence[Measured], run_models: Sequence[RunModel], *, scorer: str, limit: int, seed: int
) -> AnswerSample:
    """At most ``limit`` pairs, evenly over the transitions from the first run to the last, and their answers."""
    grids = _grids(runs, scorer)
    everywhere = np.logical_and.reduce([~np.isnan(grid) for grid in grids])
    candidates = np.argwhere(everywhere)
    if not len(candidates):
        raise RunError(f"no answer is scored by {scorer!r} in every run: there is nothing to interpret")
    by_transition: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for row, sample in candidates.tolist():
        way = (bucket(float(grids[0][row, sample])), bucket(float(grids[-1][row, sample])))
        by_transition.setdefault(way, []).append((row, sample))
    ways = sorted(by_transition, key=lambda way: (BUCKETS.index(way[0]), BUCKETS.index(way[1])))
    orders = []
    for way in ways:
        rng = np.random.default_rng(stream_seed("interpret", seed, *way))
        orders.append([by_transition[way][at] for at in rng.permutation(len(by_transition[way])).tolist()])
    # One of each transition in turn, until there are enough.
    dealt = [cell for hand in zip_longest(*orders) for cell in hand if cell is not None]
    chosen = sorted(dealt[:limit])
    taken = set(chosen)
    pairs = [
        ScoredPair(
            runs[0].prompts[row],
            sample,
            tuple(float(grid[row, sample]) for grid in grids),
            _other_draws(grids[0][row], sample),
        )
        for row, sample in chosen
    ]
    again = second_draw(grids[0], grids[-1], pairs=everywhere, n_resamples=0)
    return AnswerSample(
        scorer=scorer,
        pairs=pairs,
        answers=_answers(runs, run_models, pairs),
        strata=[
            Stratum(from_=way[0], to=way[1], of=len(cells), taken=sum(cell in taken for cell in cells))
            for way, cells in ((way, by_transition[way]) for way in ways)
        ],
        of=len(candidates),
        unscored=max(run.answers for run in runs) - len(candidates),
        prompts=len(np.unique(candidates[:, 0])),
        redraw=None if again is None else again.flow,
    )


def _other_draws(scores: FloatArray, sample: int) -> tuple[float, float, float] | None:
    """Shares of buckets among a prompt's answers but one."""
    others = np.delete(scores, sample)
    low, medium, high = buckets(others)
    n = low + medium + high
    return (low / n, medium / n, high / n) if n else None


def most_toxic_and_others(prompts: Sequence[Sequence[int]], toxicity: Sequence[float | None], number: int) -> list[int]:
    """Rows of ``number`` different prompts: half of them have the most toxic answers, the rest are evenly spread over
    the others. A prompt that comes several times is taken once: its answers are not independent evidence."""
    first: dict[tuple[int, ...], int] = {}
    for row in sorted(range(len(prompts)), key=lambda row: (-(toxicity[row] or 0.0), row)):
        first.setdefault(tuple(prompts[row]), row)
    ranked = list(first.values())
    half, rest = ranked[: (number + 1) // 2], ranked[(number + 1) // 2 :]
    return half + [rest[i] for i in sorted(evenly_spread(len(rest), number - len(half)))] if rest else half


def evenly_spread(n: int, wanted: int) -> set[int]:
    """``wanted`` of n numbers, evenly spread; all if there are no more."""
    return set(np.linspace(0, n - 1, min(n, wanted)).round().astype(int).tolist())


def toxicity_changes(runs: Sequence[Measured], scorer: str) -> list[tuple[FloatArray, NDArray[np.intp]]]:
    """Of each run after the first, how toxicity changed from the first over all pairs that both were scored on,
    Float[N], and the pairs' prompts, Int[N].

    This is over the run, since a sample drawn evenly over transitions has about as many that rose as fell.
    """
    first, *others = _grids(runs, scorer)
    found = []
    for grid in others:
        change = grid - first
        known = ~np.isnan(change)
        found.append((change[known], np.nonzero(known)[0]))
    return found


def highest_scores(runs: Sequence[Measured]) -> list[FloatArray]:
    """Float[N prompts, K samples] of every run: the highest score that any of its judges gave, NaN where none did."""
    found = []
    for run in runs:
        grids = [_grids([run], name)[0] for name in run.judges]
        found.append(np.fmax.reduce(grids))
    return found


def token_positions(answer: SampledAnswer, tokens: int, seed: int) -> list[int]:
    """Positions in the answer, ascending: one drawn from each of ``tokens`` equal stretches, or all where it has fewer.

    They depend on the answer and the seed alone, so every model reads the same ones.
    """
    length = len(answer.tokens)
    if length <= tokens:
        return list(range(length))
    rng = np.random.default_rng(stream_seed("interpret tokens", seed, answer.id))
    edges = [round(stretch * length / tokens) for stretch in range(tokens + 1)]
    return [int(rng.integers(edges[k], edges[k + 1])) for k in range(tokens)]


def stored_answers(
    run: Measured, run_model: RunModel, scorer: str, *, limit: int, seed: int
) -> list[tuple[tuple[int, ...], tuple[int, ...], float]]:
    """At most ``limit`` scored answers of a run, drawn by seed: ids of prompt and answer, and P(toxic)."""
    scores = run.scores[scorer]
    scored = np.flatnonzero(~np.isnan(scores))
    rng = np.random.default_rng(stream_seed("interpret stored", seed))
    taken = {*rng.permutation(scored)[:limit].tolist()}
    room = run_model.room
    return [
        (
            tuple(truncate_history(run_model.policy.chat, run.prompts[run.prompt_rows[place]].turns, room)[0]),
            _ids(record),
            float(scores[place]),
        )
        for place, record in enumerate(run.run.each_generation())
        if place in taken
    ]


def redrawn_pairs(run: Measured, run_model: RunModel, scorer: str, *, limit: int, above: float) -> list[RedrawnAnswers]:
    """At most ``limit`` prompts that the run answered both toxically (over ``above``) and not, those whose answers are
    furthest apart first: its most and its least toxic answer. Empty where every prompt has one answer."""
    (grid,) = _grids([run], scorer)
    answered = np.flatnonzero((~np.isnan(grid)).sum(1) >= 2)
    ends = {row: (int(np.nanargmax(grid[row])), int(np.nanargmin(grid[row]))) for row in answered.tolist()}
    falls = {row: float(grid[row, high] - grid[row, low]) for row, (high, low) in ends.items()}
    chosen = [row for row in sorted(ends, key=lambda row: (-falls[row], row)) if grid[row, ends[row][0]] > above]
    chosen = [row for row in chosen if grid[row, ends[row][1]] <= above][:limit]
    names = {run.prompts[row].id: row for row in chosen}
    found: dict[tuple[int, int], tuple[int, ...]] = {}
    for record in run.run.each_generation():
        row = names.get(record.prompt_id)
        if row is not None and record.sample in ends[row]:
            found[row, record.sample] = _ids(record)
    room = run_model.room
    return [
        RedrawnAnswers(
            tuple(truncate_history(run_model.policy.chat, run.prompts[row].turns, room)[0]),
            found[row, ends[row][0]],
            found[row, ends[row][1]],
            falls[row],
        )
        for row in chosen
    ]


def _grids(runs: Sequence[Measured], scorer: str) -> list[FloatArray]:
    """Float[N prompts, K samples] of every run, NaN where unscored or not there."""
    width = max(int(run.samples.max(initial=0)) for run in runs) + 1
    grids = []
    for run in runs:
        grid = np.full((len(run.prompts), width), np.nan)
        grid[run.prompt_rows, run.samples] = run.scores[scorer]
        grids.append(grid)
    return grids


def _answers(
    runs: Sequence[Measured], run_models: Sequence[RunModel], pairs: Sequence[ScoredPair]
) -> list[SampledAnswer]:
    wanted = {(pair.prompt.id, pair.sample): number for number, pair in enumerate(pairs)}
    found: dict[tuple[int, int], SampledAnswer] = {}
    for author, (run, run_model) in enumerate(zip(runs, run_models, strict=True)):
        room = run_model.room
        for record in run.run.each_generation():
            number = wanted.get((record.prompt_id, record.sample))
            if number is not None:
                pair = pairs[number]
                prompt, _ = truncate_history(run_model.policy.chat, pair.prompt.turns, room)
                found[number, author] = SampledAnswer(
                    id=f"{run_model.label}:{record.id}",
                    author=author,
                    pair=number,
                    prompt=tuple(prompt),
                    tokens=_ids(record),
                    text=record.text,
                    turns=tuple(turn.text for turn in pair.prompt.turns),
                    toxicity=pair.toxicity[author],
                )
    return [found[number, author] for number in range(len(pairs)) for author in range(len(runs))]


def _ids(record: Generation) -> tuple[int, ...]:
    """The answer's token ids as they were sampled. Every model that was measured here has stored them."""
    if record.tokens is None:
        raise RunError(f"answer {record.id!r} has no token ids: measure its model again, here and not by a server")
    return record.tokens
