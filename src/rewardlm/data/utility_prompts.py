"""What a model is asked by ``measure --suite utility``: harmless prompts that sound dangerous, and the same sentences
about one group of people after another.

Both are RewardLM's own (``starter/harmless.jsonl``, ``starter/group_templates.jsonl``). The safe prompts of XSTest
(Röttger et al. 2024) come from your copy. A prompt's id is a hash of its text, so that two runs are compared on the
prompts that both were asked.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rewardlm.config import UtilitySettings
from rewardlm.data.files import Row, columns, read_jsonl, read_table
from rewardlm.errors import DataError
from rewardlm.types import Message, Prompt

PromptSet = Literal["over_refusal", "xstest", "groups"]
OWN = "RewardLM's own"
# Sentences are about each of these: what a group is called, and the words that stand in the sentence.
GROUPS = (
    "women", "Muslims", "Jews", "Black people", "immigrants", "gay people", "disabled people", "old people",
)  # fmt: skip
_BLANK = "{group}"


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt with its ``kind`` (of harmless prompts), or its ``template`` and ``group``."""

    prompt: Prompt
    about: dict[str, str]


@dataclass(frozen=True)
class AskedPrompts:
    """The prompts of a set, each asked ``samples`` times, from which ``source``."""

    name: PromptSet
    prompts: list[Asked]
    samples: int
    source: str

    @property
    def n(self) -> int:
        """How many answers are wanted."""
        return len(self.prompts) * self.samples

    @property
    def of(self) -> int:
        return self.n

    @property
    def hash(self) -> str:
        """SHA-256 over the prompts' ids in order."""
        return hashlib.sha256(" ".join(asked.prompt.id for asked in self.prompts).encode()).hexdigest()


def load_asked(settings: UtilitySettings) -> list[AskedPrompts]:
    """The sets that ``settings`` name. Raises DataError for a copy of XSTest that isn't there, or not as described."""
    found = []
    if "over_refusal" in settings.tasks:
        own = harmless_prompts(settings.harmless)
        found.append(AskedPrompts("over_refusal", own, settings.refusal_samples, OWN))
        if settings.xstest is not None:
            safe, source = _xstest(settings.xstest.expanduser()), settings.xstest.name
            found.append(AskedPrompts("xstest", safe, settings.refusal_samples, source))
    if "groups" in settings.tasks:
        found.append(AskedPrompts("groups", group_prompts(), settings.group_samples, OWN))
    return found


def harmless_prompts(most: int | None = None) -> list[Asked]:
    """RewardLM's own harmless prompts, whose kind says what makes them sound dangerous; ``most`` of them, the first of
    each kind.
    """
    found = [_asked(row.text("text"), OWN, kind=row.text("kind")) for row in _own("harmless", "text and kind")]
    seen: Counter[str] = Counter()
    turns = []
    for place, asked in enumerate(found):
        kind = asked.about["kind"]
        turns.append((seen[kind], place))
        seen[kind] += 1
    return [found[place] for place in sorted(place for _, place in sorted(turns)[:most])]


def group_prompts(groups: Sequence[str] = GROUPS) -> list[Asked]:
    """Each template about each of ``groups``, template by template."""
    return [
        _asked(_about(row.text("text"), group), OWN, kind=row.text("kind"), template=row.id, group=group)
        for row in _own("group_templates", "text and kind")
        for group in groups
    ]


def _about(template: str, group: str) -> str:
    text = template.replace(_BLANK, group)
    return text[0].upper() + text[1:]


def _own(name: str, expected: str) -> list[Row]:
    resource = importlib.resources.files("rewardlm.data") / "starter" / f"{name}.jsonl"
    with importlib.resources.as_file(resource) as path:
        return list(read_jsonl(path, expected))


def _asked(text: str, source: str, **about: str) -> Asked:
    identity = hashlib.sha256(json.dumps(text).encode()).hexdigest()[:16]
    return Asked(Prompt(identity, (Message("user", text),), source), about)


def _xstest(path: Path) -> list[Asked]:
    """The safe prompts of XSTest: those labelled safe or, in a table without labels, those of no contrast type."""
    if not path.is_file():
        raise DataError(f"utility.xstest={path}: no such file; expected one with prompt, and label or type")
    found = {asked.prompt.id: asked for asked in _safe_prompts(path)}
    if not found:
        raise DataError(f"{path} has no safe prompt: expected label safe, or a type without contrast_")
    return list(found.values())


def _safe_prompts(path: Path) -> Iterator[Asked]:
    for row in read_table(path, "prompt, and label or type"):
        kind, label = (str(row.values.get(key) or "") for key in ("type", "label"))
        if not kind and not label:
            raise DataError(f"{row.where}: neither label nor type, only {columns(row.values)}; expected one of them")
        # Not every version has both.
        if label.lower() == "safe" if label else not kind.startswith("contrast_"):
            yield _asked(row.text("prompt"), path.name, kind=kind or "safe")
