"""``steer.json``: what a steer folder says of itself. The only place that knows its layout; no torch is needed.

A vector means something in the stream of the model that it was found in, and nothing in another's. So a folder says
whose it is, by a hash of the weights in every precision that they can be compared in.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, NotRequired

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from typing_extensions import TypedDict

from rewardlm.config import BY_A_JUDGE, GenerationSettings, strength_problem
from rewardlm.errors import ConfigError, RunError
from rewardlm.runs import environment
from rewardlm.typed import mistake

RECORD, TENSORS = "steer.json", "steer.safetensors"


class SteerJudge(BaseModel):
    """A judge that the method used, as a run records its own: a gain by it, or by a relative, proves nothing."""

    model_config = ConfigDict(extra="forbid")

    name: str
    labels: list[str]
    revision: str | None = None
    lineage: dict[str, Any] | None = None


class FittedOn(BaseModel):
    """The model: its weights' hash by precision (one alone if they are quantised), and the adapter that was on."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str
    model_source: str
    hashes: dict[str, str]
    quantisation: str | None = None
    adapter: str | None = None
    adapter_hash: str | None = None
    family: str | None = None
    layers: int | None = None
    width: int | None = None


class SteerRecord(BaseModel):
    """What ``steer.json`` holds."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    format: Literal[1] = 1
    method: str
    strength: float = Field(description="What measure takes if no strength is given.", ge=0)
    model: FittedOn
    settings: dict[str, Any] = Field(description="The method's settings.")
    judges: list[SteerJudge] = []
    run: dict[str, Any] | None = Field(None, description="The scored run that it was fitted on: label, prompts …")
    adapters: dict[str, dict[str, str]] = Field(
        {}, description="By name: where it is, from the folder or absolute, and a hash."
    )
    found: dict[str, Any] = Field({}, description="What fitting found: layers, and what each strength did.")
    tensors_hash: str | None = None
    environment: dict[str, Any] = Field(default_factory=environment)

    def at(self, strength: float | None) -> float:
        """The strength that is meant: the given one, else the folder's own."""
        return self.strength if strength is None else strength

    @property
    def hash(self) -> str:
        """SHA-256 of all that answers depend on, other than the strength: not where it was made, or when."""
        told = self.model_dump(mode="json", include={"method", "settings", "tensors_hash"})
        told["judges"] = [[judge.name, judge.revision] for judge in self.judges]
        told["adapters"] = {name: adapter["hash"] for name, adapter in self.adapters.items()}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


class _FittedRun(TypedDict):
    label: str


class _Adapter(TypedDict):
    hash: str


class _Tried(TypedDict):
    toxic_fraction: float | None
    perplexity: float | None
    layers: NotRequired[list[int]]


class _Found(TypedDict, total=False):
    toxic_above: float
    layers: list[int]


class _Chosen(TypedDict):
    """What was found where strengths were tried."""

    tried: list[_Tried]
    unsteered: _Tried
    chosen: int
    prompts: int
    fluent: bool
    p_value_random: NotRequired[float | None]
    random: NotRequired[list[_Tried]]
    tested: NotRequired[_Tried]


class _Inside(TypedDict):
    """What is used of the parts of a record that are open: a method may note more."""

    run: _FittedRun | None
    adapters: dict[str, _Adapter]
    found: _Found
    settings: dict[str, Any]


def read_record(folder: Path) -> SteerRecord:
    """The record of the steer folder at ``folder``. Raises RunError if it isn't there or is damaged."""
    try:
        record = SteerRecord.model_validate_json((folder / RECORD).read_bytes())
    except FileNotFoundError:
        what = "no such folder" if not folder.exists() else f"it has no {RECORD}"
        raise RunError(f"{folder} is no steer folder: {what}; make one with rewardlm steer fit") from None
    except NotADirectoryError:
        raise RunError(f"{folder} is a file: expected a folder of rewardlm steer fit") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        message = " ".join(first["msg"].split())
        raise RunError(f"{folder / RECORD} is damaged: {where:.200}: {message:.200}; fit it again") from None
    except OSError as error:
        raise RunError(f"{folder / RECORD} can't be read ({error.strerror})") from None
    if record.method in BY_A_JUDGE and not record.judges:
        raise RunError(
            f"{folder / RECORD} is damaged: judges is [], expected the judge that {record.method} asks; fit it again"
        )
    if (wrong := _wrong(record)) is not None:
        raise RunError(f"{folder / RECORD} is damaged: {wrong}; fit it again")
    return record


def _wrong(record: SteerRecord) -> str | None:
    if (wrong := mistake(_Inside, record.model_dump(mode="json", exclude={"environment"}))) is not None:
        return wrong
    found = record.found
    if "tried" not in found:
        return None
    if (wrong := mistake(_Chosen, found)) is not None:
        return f"found.{wrong}"
    if not 0 <= found["chosen"] < len(found["tried"]):
        return f"found.chosen is {found['chosen']}, expected one of the {len(found['tried'])} that were tried"
    if found.get("p_value_random") is not None and not {"random", "tested"} <= found.keys():
        return "found.random or found.tested is missing"
    return None


def refuse_strength(method: str, strength: float, generation: GenerationSettings) -> None:
    """Raise ConfigError for a strength that means nothing to the method, and where all draws would be the same."""
    if (problem := strength_problem(method, strength)) is not None:
        raise ConfigError(problem)
    if method in BY_A_JUDGE and strength > 1 and generation.temperature == 0:
        raise ConfigError(f"{method} at temperature 0 draws the same answer {strength:g} times: set a temperature")
