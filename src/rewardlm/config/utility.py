"""``rewardlm measure --suite utility``: what a model can do besides answering prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field

from rewardlm.config.fields import each_once, split_names
from rewardlm.config.section import Section

UtilityTask = Literal["hellaswag", "piqa", "wikitext"]
UTILITY_TASKS: tuple[UtilityTask, ...] = get_args(UtilityTask)


class UtilitySettings(Section):
    """``measure --suite utility``: what a model can still do, by how likely it finds given texts."""

    tasks: Annotated[
        list[UtilityTask],
        BeforeValidator(lambda value: split_names([value]) if isinstance(value, str) else value),
        AfterValidator(each_once),
    ] = Field(
        list(UTILITY_TASKS),
        min_length=1,
        description="Which tasks; those whose data aren't here are left out, and said.",
    )
    items: int | None = Field(
        500, ge=1, description="A sample of so many items of each task, if it has more; null for all."
    )
    words: int | None = Field(
        300,
        ge=1,
        description="Of each article of WikiText, its first lines until they have so many words; null for all of it.",
    )
    seed: int = Field(
        0, ge=0, description="Seed of the samples, apart from --seed: models are compared on the items that all have."
    )
    window: int = Field(
        1024, ge=2, description="Running text is read in windows of so many tokens; fewer where the model has fewer."
    )
    hellaswag: Path | None = Field(
        None,
        description="Your copy of HellaSwag (.jsonl, .parquet; with ctx_a, ctx_b, activity_label, endings, label); by "
        "default that of the folder $REWARDLM_DATA or of a package.",
    )
    piqa: Path | None = Field(None, description="Your copy of PIQA (with goal, sol1, sol2 and label), likewise.")
    wikitext: Path | None = Field(
        None, description="WikiText's tokens, or another text; by default that of the folder $REWARDLM_DATA."
    )
