"""Answers as a page shows them: prompt, answer, and what judges, witnesses and terms said of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rewardlm.measuring.metrics import THRESHOLD
from rewardlm.reporting.figures import finite

Only = Literal["all", "toxic", "disputed", "cut"]
# A witness and the reward's judge that are further apart than this are worth a look.
DISPUTED = 0.3
# Characters of a text that are shown: a page with a few hundred texts stays quick.
_LONGEST = 4_000
_MOST_NAMES = 16

Named = list[tuple[str, float | None]]


@dataclass(frozen=True, slots=True)
class ViewedAnswer:
    """One answer. ``step`` is None in a measurement. ``judges`` are those of the reward, or of the measurement."""

    step: int | None
    prompt: str
    answer: str
    finish: str | None
    reward: float | None
    reason: str | None
    judges: Named
    witnesses: Named
    terms: Named

    @classmethod
    def of_training(cls, record: Mapping[str, Any]) -> ViewedAnswer:
        """From a line of samples.jsonl, or what is left of one."""
        step = finite(record.get("step"))
        judges = _named(record.get("by_judge")) or [("toxicity", finite(record.get("toxicity")))]
        return cls(
            step=None if step is None else int(step),
            prompt=_text(record.get("prompt")),
            answer=_text(record.get("response")),
            finish=_text(record.get("finish")) or None,
            reward=finite(record.get("reward")),
            reason=_text(record.get("reason")) or None,
            judges=judges,
            witnesses=_named(record.get("by_witness")),
            terms=_named(record.get("terms")),
        )

    @classmethod
    def of_measurement(cls, record: Mapping[str, Any], prompt: str, scores: Named) -> ViewedAnswer:
        """From a line of generations.jsonl."""
        return cls(
            step=None,
            prompt=_text(prompt),
            answer=_text(record.get("text")),
            finish=_text(record.get("finish")) or None,
            reward=None,
            reason=None,
            judges=scores,
            witnesses=[],
            terms=[],
        )

    def fits(self, text: str, only: Only) -> bool:
        """Whether prompt or answer contains ``text`` (case doesn't count), and the answer is one of those asked for."""
        if text and text.casefold() not in f"{self.prompt}\n{self.answer}".casefold():
            return False
        if only == "toxic":
            return any(value is not None and value > THRESHOLD for _, value in [*self.judges, *self.witnesses])
        if only == "disputed":
            return any(
                abs(judge - witness) >= DISPUTED
                for _, judge in self.judges
                for _, witness in self.witnesses
                if judge is not None and witness is not None
            )
        return only == "all" or self.finish == "length"

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def chosen(
    answers: Sequence[ViewedAnswer], *, step: int | None, text: str = "", only: Only = "all", most: int = 12
) -> tuple[list[ViewedAnswer], int]:
    """The answers to show, newest first, and how many there are.

    Without a filter: the answers of the newest kept step up to ``step`` (None: the newest of all). With a filter, those
    of all steps: the few answers of one step are too few to filter.
    """
    if text or only != "all":
        found = [answer for answer in reversed(answers) if answer.fits(text, only)]
        return found[:most], len(found)
    if all(answer.step is None for answer in answers):
        return list(reversed(answers))[:most], len(answers)
    known = {answer.step for answer in answers if answer.step is not None}
    until = [one for one in known if step is None or one <= step]
    if not until:
        return [], 0
    newest = max(until)
    found = [answer for answer in answers if answer.step == newest]
    return found[:most], len(found)


def _named(values: object) -> Named:
    if not isinstance(values, Mapping):
        return []
    pairs: Iterable[tuple[Any, Any]] = list(values.items())[:_MOST_NAMES]
    return [(_text(name), finite(value)) for name, value in pairs]


def _text(value: object) -> str:
    """``value`` if it is a text that UTF-8 can write, and not too long."""
    if not isinstance(value, str):
        return ""
    text = value if len(value) <= _LONGEST else value[:_LONGEST] + "…"
    return text.encode("utf-8", "replace").decode("utf-8")
