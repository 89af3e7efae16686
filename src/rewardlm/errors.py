"""One base error and a few leaves. A message is one line: what, got, expected, what to do.

The command line prints the message and exits with ``exit_code``; a traceback is for bugs only.
"""


class RewardLMError(Exception):
    """Something that the user can put right."""

    exit_code = 1


class ConfigError(RewardLMError):
    """A setting, flag or override is wrong."""

    exit_code = 2


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
    """The command exists in the contract but not in this version."""

    exit_code = 3
