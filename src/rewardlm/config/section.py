"""The base of all settings."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Base of all settings: unknown keys are errors, values don't change after checking.

    Every field has a description, which ``--help``, ``rewardlm settings``, ``rewardlm init`` and docs/settings.md show.
    ``example`` has values for what a file to start from can't leave at its default: required settings above all.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, protected_namespaces=()
    )
    example: ClassVar[dict[str, Any]] = {}
