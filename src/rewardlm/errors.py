"""One base error and a few leaves. A message is one line: what happened, what was expected, what to do.

The command line prints the message and exits with ``exit_code``; a traceback is for bugs only.
"""

import re
from collections.abc import Iterable, Sequence

# Letters of a word that a message shows: what a stranger's file holds may be endless.
_LONGEST_WORD, _SHOWN = 400, 100


def did_you_mean(typed: str, known: Iterable[str], *, first: bool = False) -> str:
    """``did you mean 'starter'?``, with the known name that is nearest to ``typed``; an empty text if none is near.

    ``first`` adds a blank at the end (``did you mean 'starter'? ``), for use in front of another sentence.
    """
    import difflib

    names = {name.casefold(): name for name in known}
    # Swapping two letters of a short name leaves only half of it unchanged.
    cutoff = 0.5 if len(typed) <= 4 else 0.6
    near = difflib.get_close_matches(typed.casefold(), names, n=1, cutoff=cutoff)
    return f"did you mean {names[near[0]]!r}?{' ' if first else ''}" if near else ""


class RewardLMError(Exception):
    """Something that the user can put right.

    If several mistakes were found at once, ``problems`` lists them, one line each, and ``summary`` counts them. For a
    single mistake ``problems`` is empty, and ``summary`` is the message.
    """

    exit_code = 1
    problems: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """The one line that the error output ends with, also where a name in it holds line ends or is endless."""
        return _short(" ".join(str(self.args[0]).splitlines())) if self.args else ""

    @classmethod
    def of(cls, problems: Sequence[str], summary: str) -> "RewardLMError":
        """One error for all ``problems``; ``summary`` has a placeholder for their number: ``{} settings are wrong``."""
        if len(problems) == 1:
            return cls(problems[0])
        error = cls(summary.format(len(problems)))
        error.problems = tuple(map(_short, problems))
        return error

    def __str__(self) -> str:
        return f"{self.summary}: {'; '.join(self.problems)}" if self.problems else self.summary


def _short(text: str) -> str:
    return re.sub(rf"\S{{{_LONGEST_WORD},}}", lambda word: f"{word[0][:_SHOWN]}…", text)


class ConfigError(RewardLMError):
    """A setting, flag or override is wrong."""

    exit_code = 2


class DiskFullError(RewardLMError):
    """Something can't be written, because there is no space left."""


class DataError(RewardLMError):
    """A file, row or data set is not what was expected."""


class ModelError(RewardLMError):
    """A model, tokenizer or adapter can't be loaded or doesn't fit."""


class ScorerError(RewardLMError):
    """A judge is unknown, ambiguous or failed too often."""


class ServiceError(RewardLMError):
    """An HTTP service can't be used: no key, gone, or busy for longer than a run can wait."""


class RunError(RewardLMError):
    """A run directory is missing, of another kind, incomplete or made with other settings."""


class TrainingError(RewardLMError):
    """Training hit a limit (NaN, runaway KL) and stopped; the last good adapter is kept."""


class NotAvailableError(RewardLMError):
    """What is asked for needs something that isn't there: a package, or what a method doesn't give."""
