"""``rewardlm measure``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from rewardlm.config.fields import Names, Part
from rewardlm.config.model import GenerationSettings, ModelSettings
from rewardlm.config.section import Section
from rewardlm.config.services import ServerSettings, ServicesSettings, ServiceUrl

# How long an answer may be, in tokens, where nobody says: most of a fine-tuned model's end before. docs/measuring.md.
MAX_NEW_TOKENS = 128


class PrimarySettings(Section):
    """The outcome that counts, fixed before anyone sees a result; every other test is corrected for their number.

    A run that is asked for a part of it records all of it when it starts. What is None is chosen by rule: the first
    judge that was no reward; toxic prompts, or all where none is; the toxic share.
    """

    scorer: str | None = None
    split: Literal["all", "toxic_prompts", "nontoxic_prompts", "challenging", "comparable"] | None = None
    metric: Literal["toxic_fraction", "mean", "expected_max_toxicity", "toxicity_probability"] | None = None


class MeasureSettings(ModelSettings):
    """``rewardlm measure``: which answers are sampled and who judges them.

    ``counter_narrative`` is the judge of pairs that says which answers are counter-narratives; None leaves that out.
    Of more than ``quality_sample`` answers only so many, drawn by seed, get similarity, perplexity and that judge.
    ``engine``: ``local`` is this process, ``openai`` the server at ``url``, ``ray`` so many ``workers`` of Ray Data, on
    the cluster at ``ray_address`` (None: on this machine).
    """

    prompts: str = "starter"
    part: Part = "all"
    limit: int | None = Field(None, ge=1)
    scorer: Names = ["starter", "witness", "lexical"]
    label: str | None = None
    samples: int = Field(1, ge=1)
    max_new_tokens: int = Field(MAX_NEW_TOKENS, ge=1)
    engine: Literal["local", "openai", "ray"] = "local"
    url: ServiceUrl | None = None
    server: ServerSettings = ServerSettings()
    workers: int = Field(2, ge=1)
    ray_address: str | None = None
    batch_tokens: int = Field(8192, ge=1)
    toxic_by: str | None = None
    similarity: bool = True
    perplexity: bool = True
    counter_narrative: str | None = "starter_pairs"
    quality_sample: int = Field(10_000, ge=1)
    max_failed_share: float = Field(0.01, ge=0, le=1)
    generation: GenerationSettings = GenerationSettings()
    services: ServicesSettings = ServicesSettings()
    primary: PrimarySettings = PrimarySettings()

    @model_validator(mode="after")
    def _the_primary_judge_judges(self) -> MeasureSettings:
        name = self.primary.scorer
        if name is not None and not any(name == one or name.startswith(f"{one}.") for one in self.scorer):
            raise ValueError(
                f"primary.scorer {name!r} is none of the judges ({', '.join(self.scorer)}): name it there too"
            )
        return self

    @model_validator(mode="after")
    def _the_engine_can(self) -> MeasureSettings:
        if self.engine != "openai":
            if self.url is not None:
                raise ValueError(f"url is that of a server, and engine is {self.engine!r}: add --engine openai")
            return self
        if self.url is None and self.server.url is None:
            raise ValueError("engine 'openai' needs a server: --url http://127.0.0.1:8000/v1, for example")
        theirs = [name for name in ("adapter", "load") if getattr(self, name) is not None]
        if theirs:
            raise ValueError(f"{' and '.join(theirs)} can't be given to a server: have it load the model so")
        ours = GenerationSettings(temperature=self.generation.temperature, top_p=self.generation.top_p)
        if self.generation != ours:
            raise ValueError(
                "OpenAI's API has temperature and top_p alone: give what else your server knows by its own name, for "
                "example server.body.top_k=40"
            )
        return self


# ``rewardlm measure --preset``: settings that belong together; flags and overrides win over them.
MEASURE_PRESETS: dict[str, dict[str, Any]] = {
    # Gehman et al. 2020, 25 continuations of 20 tokens at top-p 0.9.
    "rtp-paper": {"samples": 25, "max_new_tokens": 20, "generation": {"temperature": 1.0, "top_p": 0.9}},
    # Whole answers of a chat model.
    "chat": {"samples": 4, "max_new_tokens": 128, "generation": {"temperature": 1.0, "top_p": 1.0}},
    # A first look, in minutes.
    "quick": {"samples": 1, "max_new_tokens": 128, "limit": 200},
}
