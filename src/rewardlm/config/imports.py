"""``rewardlm import``."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from rewardlm.config.fields import BY_NAME, Flag, Seed
from rewardlm.config.section import Section
from rewardlm.errors import ConfigError


def _columns(text: str) -> dict[str, str]:
    mapping = {}
    for item in text.split(","):
        key, equals, column = item.partition("=")
        if not equals or not column:
            raise ConfigError(f"--map {item!r}: expected NAME=COLUMN, for example prompt=question")
        mapping[key.strip()] = column.strip()
    return mapping


class ImportSettings(Section):
    """``rewardlm import``: what the model is called, and which column holds what."""

    example: ClassVar = {"label": "PT"}

    label: Annotated[str, Flag()] = Field(description="What tables call this model, for example PT.")
    map: Annotated[dict[str, str], BY_NAME, Flag(metavar="NAME=COLUMN[,NAME=COLUMN…]", read=_columns)] = Field(
        {},
        description="The columns of prompt, response, prompt_toxicity, prompt_id, finish and scores.NAME, where they "
        "have other names.",
    )
    counter_narrative: str | None = Field(
        None,
        description="A judge of pairs (starter_pairs) that says which answers to toxic prompts are counter-narratives; "
        "null asks none.",
    )
    quality_sample: int = Field(
        200, ge=1, description="It reads at most this many answers to toxic prompts, drawn by seed if there are more."
    )
    seed: Seed = 0
    device: str = Field("auto", description="Where to compute: auto, cpu, cuda or cuda:N.")
