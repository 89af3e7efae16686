"""A measurement in windows of questions, each answered and judged as a whole, by whichever process or worker.

A window's batches are the same whoever runs it, and so, to the bit, are its records.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

from rewardlm.config import MeasureSettings
from rewardlm.measuring.engines import WINDOW, LocalEngine, questions
from rewardlm.models.processes import Processes
from rewardlm.scoring.scorer import Scorer, score_texts
from rewardlm.types import Generation, Prompt, Verdict


@dataclass(frozen=True, slots=True)
class Judged:
    """A window's answers and, of each judge in the settings' order, its verdicts on them."""

    start: int
    generations: list[Generation]
    verdicts: list[list[Verdict]]
    truncated: int


def judged_window(
    settings: MeasureSettings,
    engine: LocalEngine,
    scorers: Sequence[Scorer],
    prompts: Sequence[Prompt],
    start: int,
) -> Judged:
    """The window that begins at the question numbered ``start``."""
    before = engine.truncated
    samples = settings.samples
    around = prompts[start // samples : (start + WINDOW) // samples + 1]
    first = start - start // samples * samples
    window = list(islice(questions(around, settings), first, first + WINDOW))
    generations = list(engine.answers(window, frozenset()))
    texts = [generation.text for generation in generations]
    verdicts = [score_texts(scorer, texts) for scorer in scorers]
    return Judged(start, generations, verdicts, engine.truncated - before)


def judged_by_processes(
    settings: MeasureSettings,
    engine: LocalEngine,
    scorers: Sequence[Scorer],
    prompts: Sequence[Prompt],
    starts: Sequence[int],
    processes: Processes,
) -> Iterator[Judged]:
    """The windows that begin at ``starts``, in their order, a round at a time: each process does one of a round, and
    all are told of all. An error in one is raised in all.
    """

    def judged(these: Sequence[int]) -> list[Judged]:
        return [judged_window(settings, engine, scorers, prompts, start) for start in these]

    for first in range(0, len(starts), processes.size):
        mine = processes.share(starts[first : first + processes.size])
        yield from processes.gather(partial(judged, mine))
