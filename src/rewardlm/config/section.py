"""The base of all settings."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


class Section(BaseModel):
    """Base of all settings: unknown keys are errors, values don't change after checking."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, protected_namespaces=()
    )

    @model_validator(mode="before")
    @classmethod
    def _one_name_is_a_list(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for key in ("scorer", "reward", "stop_on", "witness", "trackers"):
                if isinstance(data.get(key), str) and not cls._takes_one_name(key):
                    data = {**data, key: [data[key]]}
        return data

    @classmethod
    def _takes_one_name(cls, key: str) -> bool:
        return key in cls.model_fields and cls.model_fields[key].annotation == (str | None)
