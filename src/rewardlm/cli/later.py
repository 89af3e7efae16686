"""Commands of the contract that this version does not have yet: they say so, and fail."""

from __future__ import annotations

from rewardlm.errors import NotAvailableError

ANYTHING = {"allow_extra_args": True, "ignore_unknown_options": True}


def interpret() -> None:
    """Look inside a tuned model (not in this version)."""
    raise NotAvailableError("interpret is not in this version: rewardlm report shows what is measured from outside")
