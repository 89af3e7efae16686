"""Answers to the utility suite's own prompts: drawn as the run's answers are, and written down as they come.

They lie in files of their own, beside the run's answers and never among them. Each has its own seed. So a killed
measurement goes on where it stopped, with the same numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from rewardlm.config import MeasureSettings
from rewardlm.data.utility_prompts import Asked, AskedPrompts
from rewardlm.measuring.engines import LocalEngine, Question, windows
from rewardlm.measuring.utility_records import ANSWERS, JUDGED, stored_answers
from rewardlm.models.generate import stream_seed
from rewardlm.progress import ProgressCallback
from rewardlm.runs import Run
from rewardlm.types import Generation


def lacks(run: Run, asked: AskedPrompts, scorers: Sequence[str]) -> bool:
    """Whether the run lacks an answer of a set, or the scores of these answers by one of ``scorers`` (their names)."""
    have = {record["id"] for record in stored_answers(run) if record["task"] == asked.name}
    judged_by = run.meta.get("utility", {}).get("judged_by", [])
    unjudged = asked.name == JUDGED and not set(scorers) <= set(judged_by)
    return unjudged or any(name not in have for name in _ids(asked))


def add_answers(
    run: Run,
    settings: MeasureSettings,
    engine: LocalEngine,
    asked: Sequence[AskedPrompts],
    *,
    report: ProgressCallback | None = None,
) -> None:
    """Write the answers that the run lacks into utility_answers.jsonl, as the model gives them under the run's settings
    and steering.
    """
    have = {(record["task"], record["id"]) for record in stored_answers(run)}
    for one in asked:
        by_prompt = {found.prompt.id: found for found in one.prompts}
        done = sum((one.name, name) in have for name in _ids(one))
        total = len(one.prompts) * one.samples
        if report is not None:
            report(done, total, one.name)
        with contextlib.ExitStack() as held:
            for window in windows(_questions(one, settings.seed)):
                known = {row for row, question in enumerate(window) if (one.name, question.id) in have}
                if len(known) == len(window):
                    continue
                held.enter_context(engine.ready())
                for answer in engine.answers(window, known):
                    run.append(ANSWERS, [_record(one.name, by_prompt[answer.prompt_id], answer)])
                    done += 1
                    if report is not None:
                        report(done, total, one.name)


def _questions(asked: AskedPrompts, seed: int) -> Iterator[Question]:
    for one in asked.prompts:
        for sample in range(asked.samples):
            yield Question(one.prompt, sample, stream_seed(asked.name, seed, one.prompt.id, sample))


def _ids(asked: AskedPrompts) -> Iterator[str]:
    return (question.id for question in _questions(asked, 0))


def _record(task: str, asked: Asked, answer: Generation) -> dict[str, Any]:
    return {
        "task": task,
        "id": answer.id,
        "prompt_id": answer.prompt_id,
        "prompt": asked.prompt.text,
        "about": asked.about,
        "sample": answer.sample,
        "text": answer.text,
        "n_tokens": answer.n_tokens,
        "finish": answer.finish,
        "seed": answer.seed,
    }
