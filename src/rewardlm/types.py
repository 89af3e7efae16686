"""The nouns of the project: what a message, a dialogue, a prompt, an answer and its score are.

Frozen, slotted dataclasses from the standard library alone, so that every other module may import
them without cost. Two rules hold everywhere:

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
    """A whole conversation to learn from; turns alternate user, assistant, user, …

    ``ended`` says whether its last answer is whole: one that was cut off must not be learnt as one that ends there.
    """

    id: str
    turns: tuple[Message, ...]
    source: str
    target: str | None = None
    ended: bool = True


@dataclass(frozen=True, slots=True)
class DialogueSet:
    """Dialogues in file order, with what was irregular in their source and how often.

    ``notes`` counts irregularities by reason; the reason says "left out" if a turn or row was lost. ``n_rows`` is the
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
    ended by itself ("stop") or was cut off at the longest length that was allowed ("length"); None if unknown.

    ``tokens`` are the ids as they were sampled, because encoding the text again may give other ids. None for a served
    or imported answer, and in runs that are older than the field.
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


# The label under which an ensemble says how far its members disagree. It is not a P(toxic).
DISAGREEMENT = "disagreement"


@dataclass(frozen=True, slots=True)
class Score:
    """P(label) of one answer by one scorer; ``value`` is None if it is unscored, and ``reason`` says why.

    ``failed`` as in Verdict: a failed score is asked for again when its run is resumed, a declined one is not.
    """

    generation_id: str
    scorer: str
    label: str
    value: float | None
    reason: str | None = None
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a scorer says about one text: P(label) by label, or no values and the reason why not.

    A verdict with a value for the main label may have a reason too: why another label has none.

    ``failed`` tells a judge that broke (and counts towards the failure limit) from one that declined,
    because the text is empty or in a language it can't judge.
    """

    values: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None
    failed: bool = False


def is_text(text: str) -> bool:
    """Whether UTF-8 can hold it. JSON and the command line may bring in halves of characters (lone surrogates)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
