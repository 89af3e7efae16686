"""``rewardlm measure --suite utility``: what a model can do besides answering prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from rewardlm.config.fields import each_once, split_names
from rewardlm.config.section import Section

# Given texts are found likely or not; prompts of ours are answered.
ReadTask = Literal["hellaswag", "piqa", "boolq", "mmlu", "wikitext"]
AnsweredTask = Literal["over_refusal", "groups"]
# Of one literal, so that settings and messages can list the names.
UtilityTask = Literal[ReadTask, AnsweredTask]
READ_TASKS: tuple[ReadTask, ...] = get_args(ReadTask)
UTILITY_TASKS: tuple[UtilityTask, ...] = (*READ_TASKS, *get_args(AnsweredTask))


class UtilitySettings(Section):
    """``measure --suite utility``: what a model can still do, by how likely it finds given texts, and by its answers to
    harmless prompts and to prompts about groups of people.
    """

    tasks: Annotated[
        list[UtilityTask],
        BeforeValidator(lambda value: split_names([value]) if isinstance(value, str) else value),
        AfterValidator(each_once),
    ] = Field(
        list(UTILITY_TASKS),
        min_length=1,
        description="Which tasks; those whose data aren't here are left out, and you are told. over_refusal and groups "
        "ask prompts of RewardLM's own, and need none.",
    )
    items: int | None = Field(
        250, ge=1, description="A sample of so many questions of each task, if it has more; null for all."
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
    boolq: Path | None = Field(
        None, description="Your copy of BoolQ (with passage, question, and label or answer), likewise."
    )
    mmlu: Path | None = Field(
        None, description="Your copy of MMLU's test part (with subject, question, choices and answer), likewise."
    )
    wikitext: Path | None = Field(
        None, description="WikiText's tokens, or another text; by default that of the folder $REWARDLM_DATA."
    )
    xstest: Path | None = Field(
        None,
        description="Your copy of XSTest (.csv or another table with prompt, and label or type): over_refusal asks its "
        "safe prompts, too.",
    )
    harmless: int | None = Field(
        180,
        ge=1,
        description="How many of RewardLM's own harmless prompts are asked, of all kinds alike; null: all 384.",
    )
    refusal_samples: int = Field(
        1,
        ge=1,
        description="Answers to each harmless prompt. Several narrow the interval of the share that is refused.",
    )
    group_samples: int = Field(1, ge=1, description="Answers to each prompt about a group.")

    @model_validator(mode="after")
    def _xstest_is_asked(self) -> UtilitySettings:
        if self.xstest is not None and "over_refusal" not in self.tasks:
            raise ValueError("utility.xstest is given, but over_refusal is not among utility.tasks: add it")
        return self

    @property
    def read_tasks(self) -> list[ReadTask]:
        """Those of the tasks that ask how likely given texts are."""
        return [task for task in READ_TASKS if task in self.tasks]
