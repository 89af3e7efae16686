"""What is wrong with settings, in words: one line per mistake, with the place in the file, the flag or the key."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_core import ErrorDetails

from rewardlm.config.describe import Setting, describe, leaves, mark
from rewardlm.config.fields import KeysOf
from rewardlm.config.section import leaves_of
from rewardlm.errors import did_you_mean

# A value that may be a key, or an address with a key in it, is not repeated.
_SECRET = {"key", "url", "server", "services", "perspective", "endpoint", "endpoints"}
_KINDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}
_LONGEST_VALUE = 60
# More names than this are no help.
_MOST_KNOWN = 100
# What other tools call our settings.
_ELSEWHERE = {
    "lr": "learning_rate", "max_tokens": "max_new_tokens", "judge": "scorer", "judges": "scorer", "scorers": "scorer",
    "n_samples": "samples", "rank": "r", "lora_alpha": "alpha", "dataset": "dialogues", "beta": "coef",
}  # fmt: skip


def mistakes_in(kind: type[BaseModel], error: ValidationError | None, tree: Mapping[str, Any]) -> dict[str, str]:
    """What is wrong with ``tree`` as settings of ``kind``, by dotted key; under "" what ``error`` says about the whole.

    Sections that an experiment keeps unread, such as ``rlaf``, are checked too.
    """
    found: dict[str, list[str]] = {}
    for key, value in leaves_of(tree):
        # No record of ours could hold it.
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            found[key] = [f"setting {key!r} is a huge number: expected one that fits into 64 bits"]
    if error is not None:
        _gather(found, _Words(kind), error)
    for name, stage, without in _kept_as_they_stand(kind):
        given = tree.get(name)
        if not isinstance(given, Mapping):
            continue
        shared = {key: tree[key] for key in without if key in tree and key in stage.model_fields}
        # A setting that is given once, at the top, is not missing in the stage.
        needed = {key: value for key, value in getattr(stage, "example", {}).items() if key in without}
        try:
            stage.model_validate({**needed, **shared, **given})
        except ValidationError as wrong:
            of_the_stage: dict[str, list[str]] = {}
            _gather(of_the_stage, _Words(kind, f"{name}."), wrong)
            for key, words in of_the_stage.items():
                if key.removeprefix(f"{name}.").partition(".")[0] not in shared:
                    found.setdefault(key, words)
    return {key: "; ".join(words) for key, words in found.items()}


def _kept_as_they_stand(kind: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel], Sequence[str]]]:
    for name, field in kind.model_fields.items():
        if keys := mark(field, KeysOf):
            yield name, keys.kind, keys.without


def _gather(found: dict[str, list[str]], words: _Words, error: ValidationError) -> None:
    # For a value that may be of several types, pydantic reports an error for each of them.
    for one in error.errors(include_url=False):
        key, said = words.of(one)
        if said not in found.setdefault(key, []):
            found[key].append(said)


class _Words:
    """Words for mistakes in the settings of ``kind``; ``prefix`` is the section that they were read from."""

    def __init__(self, kind: type[BaseModel], prefix: str = "") -> None:
        self._settings = {setting.key: setting for setting in _all(describe(kind))}
        self._known = [setting.key for setting in leaves(describe(kind))]
        self._prefix = prefix

    def of(self, error: ErrorDetails) -> tuple[str, str]:
        """The dotted key and the sentence."""
        key = self._prefix + ".".join(str(part) for part in error["loc"])
        if error["type"] in ("extra_forbidden", "invalid_key"):
            return key, f"unknown setting {key if len(key) <= 100 else key[:99] + '…'!r}: {self._near(key)}"
        key = self._key_of(error["loc"])
        if error["type"] == "missing":
            return key, f"setting {key!r} is missing"
        message = error["msg"].removeprefix("Value error, ")
        got = _shown(error)
        if error["type"] in ("value_error", "assertion_error"):
            if not key.removesuffix("."):
                return "", message
            said = f"setting {key!r} is {got}: {message}" if got and message.startswith("expected") else ""
            return key, said or f"setting {key!r}: {message}"
        expected = self._expected(key, error)
        hint = did_you_mean(str(error["input"]), map(str, self._choices(key)))
        said = f"setting {key!r} is {got}: expected {expected}" if got else f"setting {key!r}: expected {expected}"
        return key, f"{said}; {hint}" if hint else said

    def _key_of(self, loc: Sequence[int | str]) -> str:
        """The setting's key, without the parts that pydantic adds for a list's item or for one of several types."""
        parts = [str(part) for part in loc]
        while parts and self._prefix + ".".join(parts) not in self._settings and len(parts) > 1:
            parent = self._settings.get(self._prefix + ".".join(parts[:-1]))
            # The names of a mapping are the user's own.
            if parent is not None and get_origin(parent.kind) is dict:
                break
            parts.pop()
        return self._prefix + ".".join(parts) if parts else self._prefix.removesuffix(".")

    def _choices(self, key: str) -> Sequence[Any]:
        setting = self._settings.get(key)
        return (setting.choices if setting is not None else None) or ()

    def _expected(self, key: str, error: ErrorDetails) -> str:
        setting = self._settings.get(key)
        if error["type"] == "string_pattern_mismatch" or setting is None:
            return _plain(error["msg"])
        return in_words(setting)

    def _near(self, key: str) -> str:
        section, _, last = key.rpartition(".")
        called = f"{section}.{_ELSEWHERE.get(last)}".removeprefix(".")
        if called in self._settings:
            return f"did you mean {called!r}?"
        # The very name in another section is nearer than a name like it in this one.
        elsewhere = [one for one in self._settings if one.rpartition(".")[2] == last]
        if 1 <= len(elsewhere) <= 3:
            return f"did you mean {' or '.join(map(repr, elsewhere))}?"
        beside = {one.rpartition(".")[2]: one for one in self._settings if one.rpartition(".")[0] == section}
        if hint := did_you_mean(last, beside):
            return f"did you mean {beside[_named(hint)]!r}?"
        if hint := did_you_mean(key, [*self._known, *self._settings]):
            return hint
        # The many settings of a service, and of what is measured besides, are listed as one.
        short = dict.fromkeys(
            re.sub(r"^(server|services|utility)\..*", r"\1.…", one.removeprefix(self._prefix))
            for one in self._known
            if one.startswith(self._prefix)
        )
        if len(short) > _MOST_KNOWN:
            # An experiment's are those of all its stages: their sections are enough.
            short = dict.fromkeys(one if "." not in one else f"{one.partition('.')[0]}.…" for one in short)
        return f"known: {', '.join(short)}"


def in_words(setting: Setting) -> str:
    """What a setting may be: ``a whole number, at least 1, or null``."""
    if setting.section is not None:
        return "a section with settings of its own"
    if setting.choices is not None:
        *others, last = map(repr, setting.choices)
        among = f"{', '.join(others)} or {last}" if others else last
        kind = f"a list of {among}" if setting.type.startswith("list") else among
    elif get_origin(setting.kind) is list:
        kind = "a list of numbers" if "number" in setting.type else "a list of texts"
    else:
        kind = _KINDS.get(setting.kind, setting.type.removesuffix(" or null"))
    bounds = setting.values.partition(", ")[2] if setting.limits and setting.choices is None else ""
    if "length at least" in bounds:
        kind, bounds = f"{kind}, with one at least", ""
    end = ", or null" if setting.type.endswith(" or null") else ""
    return f"{kind}{f', {bounds}' if bounds else ''}{end}"


def _all(settings: Sequence[Setting]) -> Iterator[Setting]:
    for setting in settings:
        yield setting
        yield from _all(setting.below)


def _named(hint: str) -> str:
    return hint.removeprefix("did you mean ").removesuffix("?").strip("'\"")


def _plain(message: str) -> str:
    return message.removeprefix("Input should be ").removeprefix("String should ")


def _shown(error: ErrorDetails) -> str:
    """The value that was given, on one line; an empty text where it is not to be shown."""
    value = error["input"]
    if isinstance(value, dict | BaseModel | SecretStr) or _SECRET & {str(part) for part in error["loc"]}:
        return ""
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"
