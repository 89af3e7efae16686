"""``rewardlm import``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rewardlm.config.fields import BY_NAME
from rewardlm.config.section import Section


class ImportSettings(Section):
    """``rewardlm import``: what the model is called, and which column holds what.

    ``map`` gives the column of ``prompt``, ``response``, ``prompt_toxicity``, ``prompt_id``, ``finish`` and
    ``scores.NAME``; see ``import_table``.
    With ``counter_narrative=starter_pairs``, or another judge of pairs, it is asked which answers to toxic prompts are
    counter-narratives: of ``quality_sample`` of them, drawn by ``seed``, where there are more.
    """

    label: str
    map: Annotated[dict[str, str], BY_NAME] = {}
    counter_narrative: str | None = None
    quality_sample: int = Field(200, ge=1)
    seed: int = Field(0, ge=0)
    device: str = "auto"
