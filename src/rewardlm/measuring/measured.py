"""A measured or imported run in memory, its answers as numbers: what compare, audit and interpret read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewardlm.config import flatten
from rewardlm.errors import RunError
from rewardlm.measuring.records import (
    IntArray,
    Quality,
    read_answers,
    read_quality,
    read_scores,
    refuse_twice,
    samples_wanted,
)
from rewardlm.measuring.utility_records import (
    JUDGED,
    AnswersAboutGroups,
    AnswersToHarmless,
    read_groups,
    read_harmless,
)
from rewardlm.measuring.utility_scores import TaskScores, read_utility
from rewardlm.runs import Run, RunRecord
from rewardlm.stats import FloatArray
from rewardlm.types import Prompt

# Settings that answers depend on.
_DRAWN_BY = ("max_new_tokens", "generation", "chat", "load", "quantisation", "server.body")


@dataclass(slots=True)
class Measured:
    """G answers to N prompts, as numbers; texts stay on the disk.

    ``prompt_rows`` Int[G] are positions in ``prompts``, ``samples`` Int[G] the answers' sample numbers.
    ``scores[NAME]`` is Float[G], NaN where unscored; ``reasons[NAME]`` says why, by position. A judge's main label is
    NAME, its others are NAME.label. An ensemble's disagreement is no P(toxic), so it stands apart in
    ``disagreement[NAME]``, Float[G]. ``rewards`` names the scorers that the model was trained on, ``paid_for`` the
    terms that earned reward besides. ``openings`` Int64[G] are equal where answers begin alike. ``utility`` has the
    tasks of ``measure --suite`` that ask about given texts, ``harmless`` and ``groups`` the answers to its prompts.
    """

    run: Run
    label: str
    prompts: list[Prompt]
    prompt_rows: IntArray
    samples: IntArray
    openings: NDArray[np.int64]
    scores: dict[str, FloatArray]
    reasons: dict[str, dict[int, str]]
    main_labels: dict[str, str]
    quality: Quality
    rewards: list[str] = field(default_factory=list)
    paid_for: list[str] = field(default_factory=list)
    disagreement: dict[str, FloatArray] = field(default_factory=dict)
    utility: dict[str, TaskScores] = field(default_factory=dict)
    harmless: AnswersToHarmless | None = None
    groups: AnswersAboutGroups | None = None

    @property
    def answers(self) -> int:
        return len(self.prompt_rows)

    @property
    def judges(self) -> list[str]:
        """Names of the judges whose scores are shown, each by its main label."""
        return [name for name in self.main_labels if name in self.scores]

    @property
    def meta(self) -> RunRecord:
        return self.run.meta

    @property
    def samples_refused(self) -> int:
        """How many answers to each prompt a finished run asked for, if some were refused; else 0."""
        refused = self.run.finished and sum(self.meta.get("unanswered", {}).values()) > 0
        return samples_wanted(self.run) or 0 if refused else 0

    @property
    def missing(self) -> int:
        """How many answers the run lacks, as far as it says how many it wants."""
        if self.run.finished:
            return sum(self.meta.get("unanswered", {}).values())
        wanted = samples_wanted(self.run) or int(self.samples.max(initial=0)) + 1
        return max(0, len(self.prompts) * wanted - self.answers)

    @property
    def utility_missing(self) -> dict[str, tuple[int, int]]:
        """Of each unfinished task of the utility suite: how many items or answers are there, and are wanted."""
        there = {task: len(found.ids) for task, found in self.utility.items()}
        if self.harmless is not None:
            of_sets: Counter[str] = Counter()
            for name, answers in zip(self.harmless.sets, self.harmless.answers.tolist(), strict=True):
                of_sets[name] += answers
            there |= of_sets
        there |= {JUDGED: int(self.groups.answers.sum())} if self.groups is not None else {}
        wanted = {task: about["items"] for task, about in self.meta.get("utility", {}).get("tasks", {}).items()}
        return {task: (there.get(task, 0), n) for task, n in wanted.items() if there.get(task, 0) < n}

    def on(self, prompts: AbstractSet[str]) -> Measured:
        """The run as if only the prompts of these ids had been asked. The utility suite, which asks about other texts,
        stays as it is; distinct-n, which is known of the whole run alone, is None.
        """
        inside = np.array([prompt.id in prompts for prompt in self.prompts], dtype=np.bool_)
        kept = inside[self.prompt_rows]
        position = np.cumsum(kept) - 1
        quality = {one.name: getattr(self.quality, one.name)[kept] for one in fields(Quality) if one.name != "distinct"}
        return replace(
            self,
            prompts=[prompt for prompt in self.prompts if prompt.id in prompts],
            prompt_rows=(np.cumsum(inside) - 1)[self.prompt_rows[kept]],
            samples=self.samples[kept],
            openings=self.openings[kept],
            scores={name: values[kept] for name, values in self.scores.items()},
            reasons={
                name: {int(position[at]): reason for at, reason in found.items() if kept[at]}
                for name, found in self.reasons.items()
            },
            quality=replace(self.quality, distinct=(None, None, None), **quality),
            disagreement={name: values[kept] for name, values in self.disagreement.items()},
        )


def load_measured(path: Path) -> Measured:
    """Read a run of kind ``measure`` or ``import``, finished or not.

    Raises RunError if it is none, or if its records contradict each other (an id twice, answers to unknown
    prompts, scores of unknown answers or outside [0, 1]).
    """
    run = Run.open(Path(path))
    if run.meta["kind"] not in ("measure", "import"):
        raise RunError(
            f"{path} is a run of kind {run.meta['kind']!r}: only measured or imported runs can be compared; "
            "measure the model first"
        )
    prompts = run.prompts()
    refuse_twice(path, "prompt id", (prompt.id for prompt in prompts))
    answers = read_answers(run, prompts)
    scores, reasons, main_labels, disagreement = read_scores(run, answers.positions)
    return Measured(
        run=run,
        label=run.label,
        prompts=prompts,
        prompt_rows=answers.prompt_rows,
        samples=answers.samples,
        openings=answers.openings,
        scores=scores,
        reasons=reasons,
        main_labels=main_labels,
        quality=read_quality(run, answers),
        rewards=run.meta.get("rewards") or [],
        paid_for=run.meta.get("paid_for") or [],
        disagreement=disagreement,
        utility=read_utility(run),
        harmless=read_harmless(run),
        groups=read_groups(run),
    )


def on_shared_prompts(runs: Sequence[Measured]) -> list[Measured]:
    """The runs as if they had been asked only the prompts that all of them answer. Raises RunError if there is none."""
    shared = set.intersection(*({prompt.id for prompt in run.prompts} for run in runs))
    if not shared:
        lists = ", ".join(f"{run.run.path} ({len(run.prompts)} prompts)" for run in runs)
        raise RunError(f"no prompt is in all of these runs: {lists}; measure them on one list, or on parts of it")
    return [run.on(shared) for run in runs]


def drawn_by(run: Measured) -> dict[str, Any]:
    """By dotted name, the settings that the run's answers were drawn by, besides prompts and seed, as far as known."""
    found = {
        name: value
        for name, value in flatten(run.meta["settings"]).items()
        if any(f"{name}.".startswith(f"{known}.") for known in _DRAWN_BY)
    }
    samples = samples_wanted(run.run)
    return found if samples is None else {"samples": samples, **found}
