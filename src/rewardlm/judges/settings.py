"""The settings of ``rewardlm judge``: what is listed, what is evaluated, what is trained, and what is served."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from rewardlm.config import LoraSettings, Names, NamesOrNone, Section, ServicesSettings
from rewardlm.config.fields import (
    BY_NAME,
    ONE_IS_A_LIST,
    Device,
    Flag,
    Matching,
    MaxFailedShare,
    Seed,
    Thresholds,
    each_once,
)
from rewardlm.data.split import Share
from rewardlm.judges.texts import LABELS

Listed = Annotated[list[str], ONE_IS_A_LIST]
Dialogues = Annotated[
    str,
    Field(description="starter, dialoconan, a CONAN file, or a .jsonl of messages; with :validation, that part."),
    Flag(metavar="SRC"),
]


class JudgeEvaluateSettings(Section):
    """``rewardlm judge evaluate``: judges, suites, and which label is evaluated."""

    example: ClassVar = {"judge": ["lexical"], "suite": ["starter"]}

    judge: Names = Field(description="The judges, named as for scorer.")
    suite: Annotated[Listed, AfterValidator(each_once), Flag(metavar="hatecheck|rtp|jigsaw|FILE", many=True)] = Field(
        min_length=1,
        description="The suites: hatecheck, rtp, jigsaw, a data set that judge train reads, or a .csv or .jsonl of "
        "texts with label (0 or 1) or score (0 to 1).",
    )
    label: Annotated[str | None, Flag()] = Field(
        None,
        description="The label to evaluate; by default each judge's main one, or hate on a suite about hate.",
    )
    limit: Annotated[int | None, Flag()] = Field(
        None, ge=1, description="Take a seeded sample of this many texts of each suite; by default all."
    )
    seed: Seed = 0
    device: Device = "auto"
    n_resamples: int = Field(1000, ge=100, description="Bootstrap samples of an interval.")
    speed: bool = Field(True, description="Measure texts a second; false leaves the clock out.")
    max_failed_share: MaxFailedShare = 0.01
    services: ServicesSettings = Field(ServicesSettings(), description="How judges behind HTTP are asked.")


class JudgeMigrateSettings(Section):
    """``rewardlm judge migrate``: texts with an old judge's scores, and the judge that takes over."""

    example: ClassVar = {"scored": "scored.csv", "to": "lexical"}

    scored: str = Field(
        description="The texts and the old judge's scores: a .csv, .tsv, .jsonl, .parquet, or a .json list."
    )
    to: Annotated[str, Flag(metavar="NAME")] = Field(description="The judge that takes over, named as for scorer.")
    text_column: Annotated[str, Flag()] = Field("text", min_length=1, description="The column of the texts.")
    score_column: Annotated[str, Flag()] = Field(
        "score", min_length=1, description="The column of the old judge's scores, from 0 to 1; empty: none."
    )
    label_column: Annotated[str, Flag()] = Field(
        "label",
        description="The column of labels by people, 1 toxic and 0 not; empty: none. Not needed; if you name it, it "
        "must be there. '' if the column of that name holds something else.",
    )
    threshold: Annotated[float, Flag()] = Field(
        0.5, ge=0, le=1, description="The old judge's threshold: a text was toxic if its score was above this."
    )
    n_resamples: int = Field(1000, ge=100, description="Bootstrap samples of an interval.")
    seed: Seed = 0
    device: Device = "auto"
    max_failed_share: MaxFailedShare = 0.01
    services: ServicesSettings = Field(ServicesSettings(), description="How judges behind HTTP are asked.")


class JudgeListSettings(Section):
    """``rewardlm judge list``: which judges, by which figures."""

    names: Listed = Field([], description="List only these judges; an empty list takes all.")
    dir: Annotated[Path | None, Flag()] = Field(None, description="A folder to search for judges of your own.")
    measure: Annotated[bool, Flag()] = Field(
        False, description="Evaluate the judges here and now instead of showing known figures."
    )
    suite: Annotated[Listed, Flag(many=True)] = Field(
        [],
        description="The suites for measure; an empty list takes those of hatecheck, rtp and jigsaw that are here.",
    )
    limit: Annotated[int | None, Flag()] = Field(
        None, ge=1, description="Take a seeded sample of this many texts of each suite; by default all."
    )
    seed: Seed = 0
    device: Device = "auto"
    services: ServicesSettings = Field(ServicesSettings(), description="How judges behind HTTP are asked.")


class JudgeTrainSettings(Section):
    """``rewardlm judge train``: which texts teach which encoder what."""

    example: ClassVar = {"data": ["starter"]}

    data: Annotated[Names, Flag(metavar="SRC…", many=True)] = Field(
        description="Where texts come from: starter, rtp, toxigen and others, files, folders, or files of preference "
        "pairs; several may follow."
    )
    encoder: Annotated[str, Flag()] = Field("minilm", description="What is trained: minilm, a hub id or a folder.")
    layers: int | None = Field(
        None, ge=1, description="How many of the encoder's layers the judge uses, from the lowest on; by default all."
    )
    frozen: int = Field(
        0,
        ge=0,
        description="How many of the lowest layers not to train; they read each text once instead of in every epoch.",
    )
    labels: Names = Field(default_factory=lambda: list(LABELS), description="The labels that are taught.")
    main: str = Field("toxicity", description="The label to use where only one is asked for.")
    exclude: Listed = Field(
        default_factory=list, description="Suites whose texts are left out, to evaluate the judge on them."
    )
    tuning: Literal["lora", "full"] = Field("lora", description="Train an adapter, or all weights.")
    lora: LoraSettings = Field(
        LoraSettings(r=32, alpha=64),
        description="The adapter. If you set a part of it, the rest takes the defaults of LoraSettings.",
    )
    epochs: Annotated[float, Flag()] = Field(4.0, gt=0, description="Passes over the texts.")
    batch_size: Annotated[int, Flag()] = Field(32, ge=1, description="Texts of one optimizer step.")
    learning_rate: Annotated[float | None, Flag()] = Field(
        None, gt=0, description="Peak of the learning rate; by default 0.0005 with lora and 0.00005 with full."
    )
    warmup_ratio: float = Field(0.06, ge=0, lt=1, description="Share of the steps in which the rate rises to its peak.")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's weight decay.")
    max_length: int = Field(128, ge=8, description="Longest text, in tokens; the rest of a longer one is not read.")
    limit: Annotated[int | None, Flag()] = Field(
        None, ge=1, description="Take a seeded sample of this many texts; by default all."
    )
    limits: dict[str, int] = Field(
        default_factory=dict, description="Take a seeded sample of this many texts of a source, by its name."
    )
    share: Share = Field(
        "all", description="All texts, or those that belong to one of the package's two judges, which share none."
    )
    balance: Literal["source", "none"] = Field(
        "source",
        description="source weighs each source by the square root of its number of texts; none weighs all texts alike.",
    )
    weights: dict[str, float] = Field(
        default_factory=dict, description="Factors on the loss of a source's texts, by its name."
    )
    misspelt: float = Field(
        0.0, ge=0, le=1, description="Share of the training texts that are taught again in another spelling."
    )
    regrouped: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the texts naming a group of people that are taught again about other groups.",
    )
    teacher: str | None = Field(
        None, description="A scorer that fills in labels that a source left open, as far as it has them."
    )
    teacher_weight: float = Field(0.5, ge=0, description="Weight of such a label in the loss.")
    distil: NamesOrNone = Field([], description="Judges to learn from: their P(main label) becomes a target.")
    distil_share: float = Field(
        0.9,
        ge=0,
        le=1,
        description="Share of their mean in a target; the rest is the source's label. Where the source has none, the "
        "target is their mean.",
    )
    validation: float = Field(0.05, gt=0, lt=1, description="Share of the texts that is held out while training.")
    evaluations: int = Field(2, ge=1, description="Evaluations on the held-out texts per epoch.")
    patience: int = Field(
        3, ge=1, description="Stop training after this many evaluations without a better validation loss."
    )
    keep: Literal["best", "last"] = Field(
        "best",
        description="Keep the best weights, or train to the end and keep the last: a rising validation loss may be "
        "mere overconfidence, which calibration corrects.",
    )
    calibration: Literal["platt", "temperature", "isotonic", "none"] = Field(
        "platt", description="How the scores are made probabilities, by means of held-out texts."
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Precision of the computations in training; auto: what the device is fast in."
    )
    seed: Seed = 0
    device: Device = "auto"

    @model_validator(mode="after")
    def _labels_are_known(self) -> JudgeTrainSettings:
        unknown = sorted(set(self.labels) - set(LABELS))
        if unknown:
            raise ValueError(f"labels {', '.join(unknown)}: expected some of {', '.join(LABELS)}")
        if self.main not in self.labels:
            raise ValueError(f"main is {self.main!r}: expected one of the labels, {', '.join(self.labels)}")
        if self.layers is not None and self.frozen >= self.layers:
            raise ValueError(f"frozen is {self.frozen} of {self.layers} layers: leave at least one to train")
        if self.layers is not None and self.tuning == "full":
            raise ValueError("layers needs tuning=lora: what is stored is an adapter for the whole encoder")
        return self

    @property
    def rate(self) -> float:
        """The peak learning rate: an adapter needs about ten times that of all weights."""
        return self.learning_rate or (5e-4 if self.tuning == "lora" else 5e-5)


class PairJudgeSettings(Section):
    """``rewardlm judge train-pairs``: which dialogues teach which encoder."""

    dialogues: Dialogues = "starter"
    encoder: Annotated[str, Flag()] = Field("minilm", description="What is trained: minilm, a hub id or a folder.")
    validation: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="Share of the dialogues that is held out, always the same ones. They share no user turn with the "
        "others, set the temperature and give the card's figures.",
    )
    made_up: int = Field(300, ge=0, description="Short exchanges, made from our own lines, that every epoch adds.")
    hate: NamesOrNone = Field(
        [],
        description="Sources of judge train (toxigen, stereotypes). Their hateful texts that name a target become "
        "answers that agree, and claims.",
    )
    answered: int = Field(600, ge=0, description="How many of these texts get an answer of ours in every epoch.")
    controls: int = Field(
        1, ge=0, description="How often each exchange's answer is shown under a prompt that it doesn't oppose."
    )
    toxic: NamesOrNone = Field(
        [], description="Sources of judge train. Their toxic texts that name no group become some of these prompts."
    )
    start: str | None = Field(
        None,
        description="A judge of pairs on the same encoder, to go on training its adapter; by default it starts afresh.",
    )
    thinned: float = Field(0.5, ge=0, le=1, description="Share of the pairs that lose a tenth of their words.")
    epochs: Annotated[int, Flag()] = Field(8, ge=1, description="Passes; each draws its examples anew.")
    batch_size: Annotated[int, Flag()] = Field(32, ge=1, description="Pairs of one optimizer step.")
    learning_rate: Annotated[float, Flag()] = Field(5e-4, gt=0, description="Peak of the learning rate.")
    warmup_ratio: float = Field(0.06, ge=0, lt=1, description="Share of the steps in which the rate rises to its peak.")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's weight decay.")
    max_length: int = Field(128, ge=64, description="Longest pair, in tokens.")
    lora: LoraSettings = Field(
        LoraSettings(r=16, alpha=32, dropout=0.05, targets=["query", "key", "value", "dense"]),
        description="The adapter. If you set a part of it, the rest takes the defaults of LoraSettings.",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Precision of the computations in training; auto: what the device is fast in."
    )
    seed: Seed = 0
    device: Device = "auto"


class PairEvaluateSettings(Section):
    """``rewardlm judge evaluate-pairs``: which judge on which dialogues."""

    example: ClassVar = {"judge": "starter_pairs"}

    judge: str = Field(description="starter_pairs, or a folder made by train-pairs.")
    dialogues: Dialogues = "starter:validation"
    limit: Annotated[int | None, Flag()] = Field(
        None, ge=1, description="Take a seeded sample of this many exchanges; by default all."
    )
    seed: Seed = 0
    device: Device = "auto"


class JudgeServeSettings(Section):
    """``rewardlm judge serve``: which judges, where, for whom, and within which limits."""

    example: ClassVar = {"judge": ["starter"]}

    judge: Names = Field(
        description="The judges, named as for scorer. The first one answers where a request names none."
    )
    host: Annotated[str, Flag()] = Field(
        "127.0.0.1", description="The address to listen on; 127.0.0.1 lets only this machine connect."
    )
    port: Annotated[int, Flag()] = Field(8000, ge=0, le=65535, description="The port; 0 takes a free one.")
    device: Device = "auto"
    allow_anyone: Annotated[bool, Flag()] = Field(
        False, description="Listen where other machines can connect, although no key is set."
    )
    key_variable: str = Field(
        "REWARDLM_SERVE_KEY",
        pattern=r"^[A-Za-z_]\w*$",
        description="The environment variable that holds the key which requests must bring; without it none is needed.",
    )
    hosts: Listed = Field(
        [], description="Further names by which this server is addressed, such as that of a proxy in front of it."
    )
    languages: Annotated[Listed, AfterValidator(each_once)] = Field(
        ["en"],
        min_length=1,
        description="The languages that the judges read. Perspective's requests for others are refused.",
    )
    attributes: dict[Annotated[str, Field(pattern="^[A-Z][A-Z_]*$")], str] = Field(
        default_factory=dict,
        description="Perspective's attributes by a judge's label, besides those that docs/serving.md lists: "
        "attributes.TOXICITY=hate.",
    )
    aliases: Annotated[dict[str, str], BY_NAME] = Field(
        default_factory=dict,
        description="Other names for a judge, for scripts that name a model: aliases.NAME=starter.",
    )
    threshold: float = Field(
        0.5, ge=0, le=1, description="In /v1/moderations, a text is flagged if a category is above this."
    )
    label_thresholds: Annotated[dict[str, Annotated[float, Field(ge=0, le=1)]], BY_NAME] = Field(
        default_factory=dict, description="The same for single labels: label_thresholds.insult=0.7."
    )
    thresholds: Thresholds = None
    matching: Matching = "share"
    queue: int = Field(2048, ge=1, description="Texts that may wait; what comes beyond that is refused with 429.")
    texts_per_request: int = Field(512, ge=1, description="Texts, or sentences to score, in one request.")
    text_bytes: int = Field(
        100_000, ge=1, description="Bytes of one text; Perspective's format has its own limit, 20480."
    )
    body_bytes: int = Field(2_000_000, ge=1024, description="Bytes of a request's body.")
    workers: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Threads that score at the same time, each with its share of the processor's cores, where a judge "
        "can be used so; by default one for each core, and four at most. With 1, a text that comes alone has all of "
        "them. On a GPU there is one.",
    )
    batch_texts: int = Field(128, ge=1, description="Different texts that a judge gets at once.")
    batch_characters: int = Field(20_000, ge=1, description="Their characters, all together.")
    timeout_seconds: float = Field(30.0, gt=0, description="A request that waits longer for its scores gets a 504.")
    body_seconds: float = Field(
        10.0, gt=0, description="Seconds in which a request's headers, and then its body, must have come."
    )
    stop_seconds: float = Field(
        30.0, gt=0, description="When it is told to stop, the server answers what waits, for so many seconds at most."
    )
    services: ServicesSettings = Field(ServicesSettings(), description="How judges behind HTTP are asked.")

    @model_validator(mode="after")
    def _the_parts_fit(self) -> JudgeServeSettings:
        unknown = sorted(set(self.aliases.values()) - set(self.judge))
        if unknown:
            raise ValueError(f"aliases name {', '.join(unknown)}: expected some of {', '.join(self.judge)}")
        if twice := sorted(set(self.aliases) & set(self.judge)):
            raise ValueError(f"aliases: {', '.join(twice)} is the name of a judge already")
        if self.texts_per_request > self.queue:
            raise ValueError(
                f"texts_per_request is {self.texts_per_request} and queue {self.queue}: a request must fit in the queue"
            )
        return self
