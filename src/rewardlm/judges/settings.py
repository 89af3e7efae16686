"""The settings of ``rewardlm judge``: what is evaluated, and what is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from rewardlm.config import LoraSettings, Names, NamesOrNone, Section, ServicesSettings, one_is_a_list
from rewardlm.data.split import Share
from rewardlm.judges.texts import LABELS


class JudgeEvaluateSettings(Section):
    """``rewardlm judge evaluate``: judges, suites, and which label is looked at.

    ``label`` None means each judge's main label, or its label ``hate`` on a suite that is about hate. ``limit`` is a
    sample of each suite drawn from ``seed``, which draws the bootstrap too. ``speed`` false leaves the clock out.
    """

    judge: Names
    suite: list[str] = Field(min_length=1)
    label: str | None = None
    limit: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0)
    device: str = "auto"
    n_resamples: int = Field(1000, ge=100)
    speed: bool = True
    max_failed_share: float = Field(0.01, ge=0, le=1)
    services: ServicesSettings = ServicesSettings()

    _listed = field_validator("judge", "suite", mode="before")(one_is_a_list)

    @field_validator("suite")
    @classmethod
    def _each_suite_once(cls, value: list[str]) -> list[str]:
        twice = sorted({name for name in value if value.count(name) > 1})
        if twice:
            raise ValueError(f"named twice: {', '.join(twice)}; name each once")
        return value


class JudgeListSettings(Section):
    """``rewardlm judge list``: which judges, by which figures.

    ``names`` none means all. ``dir`` is searched for judges of one's own. ``measure`` evaluates the judges here and now
    on ``suite`` (none: those of hatecheck, rtp and jigsaw that are on this machine) instead of showing known figures.
    """

    names: list[str] = Field([])
    dir: Path | None = None
    measure: bool = False
    suite: list[str] = Field([])
    limit: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0)
    device: str = "auto"
    services: ServicesSettings = ServicesSettings()

    _listed = field_validator("names", "suite", mode="before")(one_is_a_list)


class JudgeTrainSettings(Section):
    """``rewardlm judge train``: which texts teach which encoder what.

    ``layers``: the judge stands on that many of the encoder's lowest layers, None means all. The lowest ``frozen`` of
    them stay as they are: what they say of a text is computed once, so that only the others cost time in every epoch.
    ``data``: sources of ``judges.texts.load_labelled``, or files of preference pairs. ``exclude``: suites whose texts
    are left out, because the judge will be evaluated on them. ``share``: all texts, or those that ``data.split`` gives
    to one of the package's two judges, which share none. ``limits`` takes a seeded sample of a source's texts,
    ``weights`` multiplies their loss. ``misspelt`` is the share of training texts that are taught a second time in
    another spelling, ``regrouped`` the share of those that name a group of people which are taught a second time about
    others. ``teacher`` is a scorer that fills in, at ``teacher_weight``, what a source left open of the
    labels that it has too. ``distil`` are judges whose main label is taught as they see it: a target is
    ``distil_share`` of their mean and the rest what the source says, or theirs alone where it says nothing.
    ``patience`` counts evaluations without a better validation loss (there are ``evaluations`` of them an epoch) after
    which training stops; the best weights are kept. ``keep`` "last" trains to the end and keeps what is there then: a
    validation loss that rises may be mere overconfidence, which calibration takes back.
    """

    data: Names
    encoder: str = "minilm"
    layers: int | None = Field(None, ge=1)
    frozen: int = Field(0, ge=0)
    labels: Names = Field(default_factory=lambda: list(LABELS))
    main: str = "toxicity"
    exclude: list[str] = Field(default_factory=list)
    tuning: Literal["lora", "full"] = "lora"
    lora: LoraSettings = LoraSettings(r=32, alpha=64)
    epochs: float = Field(4.0, gt=0)
    batch_size: int = Field(32, ge=1)
    learning_rate: float | None = Field(None, gt=0)
    warmup_ratio: float = Field(0.06, ge=0, lt=1)
    weight_decay: float = Field(0.01, ge=0)
    max_length: int = Field(128, ge=8)
    limit: int | None = Field(None, ge=1)
    limits: dict[str, int] = Field(default_factory=dict)
    share: Share = "all"
    balance: Literal["source", "none"] = "source"
    weights: dict[str, float] = Field(default_factory=dict)
    misspelt: float = Field(0.0, ge=0, le=1)
    regrouped: float = Field(0.0, ge=0, le=1)
    teacher: str | None = None
    teacher_weight: float = Field(0.5, ge=0)
    distil: NamesOrNone = Field([])
    distil_share: float = Field(0.9, ge=0, le=1)
    validation: float = Field(0.05, gt=0, lt=1)
    evaluations: int = Field(2, ge=1)
    patience: int = Field(3, ge=1)
    keep: Literal["best", "last"] = "best"
    calibration: Literal["platt", "temperature", "isotonic", "none"] = "platt"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = Field(0, ge=0)
    device: str = "auto"

    _listed = field_validator("data", "labels", "exclude", "distil", mode="before")(one_is_a_list)

    @model_validator(mode="after")
    def _labels_are_known(self) -> JudgeTrainSettings:
        unknown = sorted(set(self.labels) - set(LABELS))
        if unknown:
            raise ValueError(f"labels {', '.join(unknown)}: expected some of {', '.join(LABELS)}")
        if self.main not in self.labels:
            raise ValueError(f"main is {self.main!r}: expected one of the labels, {', '.join(self.labels)}")
        if self.layers is not None and self.frozen >= self.layers:
            raise ValueError(f"frozen is {self.frozen} of {self.layers} layers: leave one at least to train")
        if self.layers is not None and self.tuning == "full":
            raise ValueError("layers goes with tuning=lora: what is stored is an adapter of the whole encoder")
        return self

    @property
    def rate(self) -> float:
        """The peak learning rate: an adapter needs about ten times that of all weights."""
        return self.learning_rate or (5e-4 if self.tuning == "lora" else 5e-5)
