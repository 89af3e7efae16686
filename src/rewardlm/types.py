"""The nouns of the project: what a message, a dialogue, a prompt, an answer and its score are.

Frozen, slotted dataclasses of the standard library alone, so that every other module may import
them without cost. Two rules hold wherever they travel:

* a score is P(toxic): higher is always more toxic, and ``None`` means *unscored*, with a reason;
* text is judged as text: the answer alone, never the prompt in front of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Role = Literal["system", "user", "assistant"]
Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A whole conversation to learn from; turns alternate user, assistant, user, …"""

    id: str
    turns: tuple[Message, ...]
    source: str
    target: str | None = None


@dataclass(frozen=True, slots=True)
class DialogueSet:
    """Dialogues in file order, with what was irregular in their source and how often.

    ``notes`` counts by reason; an irregularity that costs a turn or a row says "left out". ``n_rows`` is the
    number of rows of the file: turns in DIALOCONAN, hate-speech/counter-narrative pairs in the other CONAN
    files, dialogues in a jsonl.
    """

    dialogues: list[Dialogue]
    notes: dict[str, int]
    source: str
    n_rows: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is asked to answer: the last turn is the user's, the turns before are its antecedents.

    ``toxicity`` is P(toxic) of the bare last turn, in [0, 1], as the data set states it or as a scorer
    found it; ``None`` if nobody has judged it. ``challenging`` is RealToxicityPrompts' own flag.
    """

    id: str
    turns: tuple[Message, ...]
    source: str
    toxicity: float | None = None
    challenging: bool = False

    @property
    def text(self) -> str:
        """The bare prompt: the last turn's text, without antecedents and without a chat template."""
        return self.turns[-1].text


@dataclass(frozen=True, slots=True)
class Generation:
    """One sampled answer. ``n_tokens`` counts the answer's tokens, the end token included. ``finish`` says whether it
    ended by itself ("stop") or was cut off at the longest length that was allowed ("length"); None where nobody says.

    ``tokens`` are their ids as they were sampled, where this process sampled them: a text may be encoded in other ways
    than it was written. None of a served or imported answer, and of runs that are older than the field.
    """

    id: str
    prompt_id: str
    model: str
    sample: int
    text: str
    n_tokens: int
    finish: Finish | None
    seed: int
    tokens: tuple[int, ...] | None = None


# The label under which an ensemble says how far its members are apart, which is no P(toxic).
DISAGREEMENT = "disagreement"


@dataclass(frozen=True, slots=True)
class Score:
    """P(label) of one answer by one scorer; ``value`` is None where it is unscored, for ``reason``.

    ``failed`` as in Verdict: such a score is asked for again when its run goes on, one that was declined is not.
    """

    generation_id: str
    scorer: str
    label: str
    value: float | None
    reason: str | None = None
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a scorer says of one text: P(label) by label, or no values and the reason why not.

    A verdict with a value of the main label may have a reason too: why another label has none.

    ``failed`` tells a judge that broke (and counts towards the failure limit) from one that declined,
    because the text is empty or in a language it can't judge.
    """

    values: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None
    failed: bool = False
