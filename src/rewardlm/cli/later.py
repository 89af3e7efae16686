"""Commands of the contract that this version does not have yet: they say so, and fail."""

from __future__ import annotations

from rewardlm.errors import NotAvailableError

ANYTHING = {"allow_extra_args": True, "ignore_unknown_options": True}


def judge() -> None:
    """Train and evaluate judges (not in this version)."""
    raise NotAvailableError(
        "judge is not in this version: --scorer takes lexical, lexical2, any sequence classifier, or module:function"
    )


def interpret() -> None:
    """Look inside a tuned model (not in this version)."""
    raise NotAvailableError("interpret is not in this version: rewardlm report shows what is measured from outside")
