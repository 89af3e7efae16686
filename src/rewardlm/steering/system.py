"""A system prompt: the cheapest way to ask a model to behave, and the first that others must beat."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from rewardlm.data.chat import truncate_text
from rewardlm.models.generate import answering
from rewardlm.models.load import Policy
from rewardlm.steering.folder import SteerFolder
from rewardlm.steering.steered import Steered
from rewardlm.types import Message


class SystemPrompt:
    """A system turn in front of every conversation. A conversation that has one keeps it, after ours: strength 1."""

    method = "system"

    def __init__(self, folder: SteerFolder) -> None:
        self.strength = folder.record.strength
        self.prompt = str(folder.record.settings["prompt"])

    @contextlib.contextmanager
    def on(self, policy: Policy) -> Iterator[Steered]:
        with answering(policy):
            yield _WithSystemPrompt(policy, self.prompt)


class _WithSystemPrompt(Steered):
    def __init__(self, policy: Policy, prompt: str) -> None:
        super().__init__(policy)
        self._prompt = prompt
        self.openings = (f"{prompt}\n\n",)

    def prompts(self, turns: Sequence[Message], strength: float, room: int) -> tuple[list[tuple[int, ...]], int]:
        theirs = [turn.text for turn in turns[:1] if turn.role == "system"]
        # What the settings have in front of every conversation, which a system turn would replace.
        theirs = theirs or [text for text in (self.policy.chat.system,) if text]
        system = Message("system", in_front(self._prompt, theirs[0] if theirs else None))
        ids, cut = truncate_text(
            self.policy.chat, [system, *(turn for turn in turns if turn.role != "system")], "", room
        )
        return [tuple(ids)], cut


def in_front(prompt: str, theirs: str | None) -> str:
    """The system turn with our prompt in front of the conversation's own, if it has one."""
    return "\n\n".join([prompt, *([theirs] if theirs else [])])
