"""The settings of every command, checked: YAML file, then flags, then ``key.sub=value`` overrides.

Each command has one pydantic model here; an unknown key is an error that names the nearest known one.
Flags that a user did not give are absent (not None), so that a YAML file's value stands.
"""

from __future__ import annotations

import copy
import difflib
import os
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from rewardlm.errors import ConfigError

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Part = Literal["all", "train", "measure"]


# How long an answer may be, in tokens, where nobody says: most of a fine-tuned model's end before. docs/measuring.md.
MAX_NEW_TOKENS = 128

# What a step of RL may look like where training goes wrong although every number is finite; see training.guards.
Doubt = Literal[
    "negative_kl",
    "constant_reward",
    "entropy_collapse",
    "language_switch",
    "repetition",
    "short_answers",
    "same_answer",
    "clipped",
    "uneven_weights",
    "truncated",
    "reward_hacking",
    "witness_failed",
]
Resume = Literal["exact", "inexact"]


def split_names(items: Sequence[str]) -> list[str]:
    """``["a,mean(b,c)"]`` → ``["a", "mean(b,c)"]``: commas inside brackets belong to an ensemble's name.

    Raises ValueError where a name is empty or stands there twice, or a bracket has no partner.
    """
    names: list[str] = []
    for text in items:
        depth, start = 0, 0
        for position, character in enumerate(text + ","):
            depth += (character == "(") - (character == ")")
            if depth < 0:
                break
            if character == "," and depth == 0:
                names.append(text[start:position].strip())
                start = position + 1
        if depth or "" in names:
            raise ValueError(f"can't read the list {text!r}: expected at least one NAME[,NAME…], every bracket closed")
    if not names:
        raise ValueError("at least one name is needed")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"named twice: {', '.join(twice)}; name each once")
    return names


Names = Annotated[list[str], AfterValidator(split_names)]


def _names_or_none(items: Sequence[str]) -> list[str]:
    return split_names(items) if items and list(items) != ["none"] else []


NamesOrNone = Annotated[list[str], AfterValidator(_names_or_none)]


def one_is_a_list(value: Any) -> Any:
    """For ``field_validator(…, mode="before")``: a single string stands for a list of it."""
    return [value] if isinstance(value, str) else value


def is_function_name(text: str) -> bool:
    """Whether ``text`` looks like ``module:function``."""
    return re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*", text) is not None


def cache_folder() -> Path:
    """Where converted weights and fetched data sets are kept: $REWARDLM_CACHE, else the user's cache folder."""
    set_by_user = os.environ.get("REWARDLM_CACHE")
    if set_by_user:
        return Path(set_by_user).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rewardlm"


def data_folder() -> Path | None:
    """Where the user keeps published data sets: $REWARDLM_DATA; None where it isn't set."""
    set_by_user = os.environ.get("REWARDLM_DATA")
    return Path(set_by_user).expanduser() if set_by_user else None


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"lora": {"r": 4}}`` → ``{"lora.r": 4}``: settings by the names that overrides use."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return flat


# KEY.NAME=VALUE arrives as a tree, as every dotted key does; but a name may hold dots itself.
_BY_NAME = BeforeValidator(lambda value: flatten(value) if isinstance(value, dict) else value)


def _checked_url(url: SecretStr) -> SecretStr:
    parts = urllib.parse.urlsplit(url.get_secret_value().strip())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("expected an address that begins with http:// or https://, such as http://127.0.0.1:8000/v1")
    parts.port  # noqa: B018  raises ValueError, in words, where it is no port
    return SecretStr(parts.geturl())


def secrets_in_url(url: str) -> list[str]:
    """What may be a key in an address: its user, password, and the values of its query."""
    parts = urllib.parse.urlsplit(url)
    found = [parts.username, parts.password, *(value for _, value in urllib.parse.parse_qsl(parts.query))]
    return [secret for secret in found if secret]


def without_secrets(url: str) -> str:
    """The address as a record may hold it: scheme, host, port and path."""
    parts = urllib.parse.urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}{parts.path.rstrip('/')}"


def _recorded_url(url: SecretStr) -> str:
    return without_secrets(url.get_secret_value())


# Users put keys into addresses: one is never shown, and is recorded without them.
ServiceUrl = Annotated[
    SecretStr, AfterValidator(_checked_url), PlainSerializer(_recorded_url, return_type=str, when_used="json")
]


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


class GenerationSettings(Section):
    """How answers are sampled. Temperature 0 is greedy; top_k 0 and top_p 1 switch truncation off."""

    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    min_new_tokens: int = Field(0, ge=0)
    no_repeat_ngram_size: int = Field(0, ge=0)


class ChatSettings(Section):
    """How turns become text: the model's own template, a plain one, or the user's.

    ``template``: ``auto`` (the model's, else plain), ``plain``, or a path to a Jinja chat template.
    ``user`` and ``assistant`` are the role names of the plain template (``<human>:`` and ``<bot>:`` in 2023).
    """

    template: str = "auto"
    user: str = "User:"
    assistant: str = "Assistant:"
    system: str | None = None


class LoraSettings(Section):
    """Low-rank adapters (Hu et al. 2021): W + (alpha / r)·B·A on the target modules."""

    r: int = Field(16, ge=1)
    alpha: float = Field(32, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: list[str] | Literal["all-linear"] = "all-linear"


class QuantisationSettings(Section):
    """How ``--load`` holds the base's linear layers, by bitsandbytes: docs/quantisation.md.

    Of 4bit: ``kind`` says which 16 values there are, ``double`` whether the blocks' scales are quantised too, and
    ``compute_dtype`` what products are taken in (auto: the model's ``dtype``, which embeddings, norms and the head
    keep). Of 8bit: inputs of ``outliers`` or more are multiplied as they are, not rounded; 0 rounds all.
    """

    kind: Literal["nf4", "fp4"] = "nf4"
    double: bool = True
    compute_dtype: Dtype = "auto"
    outliers: float = Field(6.0, ge=0)


class ModelSettings(Section):
    """What every command that loads a model takes."""

    model: str
    adapter: Path | None = None
    seed: int = Field(0, ge=0)
    dtype: Dtype = "auto"
    load: Literal["8bit", "4bit"] | None = None
    quantisation: QuantisationSettings = QuantisationSettings()
    device: str = "auto"
    chat: ChatSettings = ChatSettings()


class ServiceSettings(Section):
    """How an HTTP service is asked. ``key`` is better kept in the environment variable that ``key_variable`` names.

    A failure that may pass (429, 5xx, a time-out) is tried ``tries`` times in all, after as long as the service asks
    for, else after a random time that doubles from ``backoff_seconds``; one that wants to be left alone for more than
    ``longest_wait_seconds`` ends the run.
    """

    url: ServiceUrl | None = None
    key: SecretStr | None = None
    key_variable: str = "OPENAI_API_KEY"
    concurrency: int = Field(8, ge=1, le=1024)
    requests_per_second: float | None = Field(None, gt=0)
    timeout_seconds: float = Field(60.0, gt=0)
    tries: int = Field(5, ge=1)
    backoff_seconds: float = Field(1.0, ge=0)
    longest_wait_seconds: float = Field(120.0, gt=0)


class ServerSettings(ServiceSettings):
    """The server of ``--engine openai``. ``body`` is added to every request, for what a server has beyond OpenAI's
    API (``server.body.top_k=40``); ``length_field`` is what it calls the longest answer's tokens.
    """

    length_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    body: dict[str, Any] = {}


def _one_or_more(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class PerspectiveSettings(ServiceSettings):
    """The judge ``perspective``, Google's Perspective API; the first of ``attributes`` is the main label.

    ``languages``: what the texts are taken to be written in; none lets the API find out, and it refuses what it can't
    tell or doesn't know. ``cache`` keeps answers on this machine for the day. Without a ``url`` it is
    $REWARDLM_PERSPECTIVE_URL, else Google's.
    """

    key_variable: str = "PERSPECTIVE_API_KEY"
    # What Google allows without asking.
    requests_per_second: float | None = Field(1.0, gt=0)
    attributes: Annotated[list[Annotated[str, Field(pattern="^[A-Z][A-Z_]*$")]], BeforeValidator(_one_or_more)] = Field(
        [
            "TOXICITY", "SEVERE_TOXICITY", "IDENTITY_ATTACK", "INSULT", "PROFANITY", "THREAT", "SEXUALLY_EXPLICIT",
            "FLIRTATION",
        ],
        min_length=1,
    )  # fmt: skip
    languages: Annotated[list[str], BeforeValidator(_one_or_more)] = ["en"]
    cache: bool = True

    @model_validator(mode="after")
    def _each_attribute_once(self) -> PerspectiveSettings:
        twice = sorted({name for name in self.attributes if self.attributes.count(name) > 1})
        if twice:
            raise ValueError(f"attributes named twice: {', '.join(twice)}; name each once")
        return self


class EndpointSettings(ServiceSettings):
    """A judge ``endpoint`` behind an OpenAI-compatible server.

    ``kind``: ``moderation`` asks its ``/moderations``, ``chat`` lets ``model`` rate texts by ``rubric`` (a text, or the
    path of one; None is ours). Of moderation ``category`` is the main label; None is the highest of all categories.
    ``categories`` names them; None asks the server for them once, at the start. Without ``url``, ``kind`` or ``model``,
    ``services.endpoint`` takes $REWARDLM_ENDPOINT_URL, …_KIND and …_MODEL; kind is else moderation.
    ``temperature`` None and ``max_tokens`` None leave these out of a chat request.
    """

    kind: Literal["moderation", "chat"] | None = None
    model: str | None = None
    rubric: str | None = None
    category: str | None = None
    categories: Annotated[list[str] | None, BeforeValidator(_one_or_more)] = None
    temperature: float | None = Field(0.0, ge=0)
    max_tokens: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _the_parts_fit(self) -> EndpointSettings:
        if self.kind == "chat" and (self.category is not None or self.categories is not None):
            raise ValueError("category and categories are those of kind 'moderation': leave them out")
        if self.kind == "moderation" and self.rubric is not None:
            raise ValueError("a rubric is for kind 'chat': leave it out")
        if self.categories is not None and self.category is not None and self.category not in self.categories:
            raise ValueError(f"category {self.category!r} is none of the categories {', '.join(self.categories)}")
        return self


class ServicesSettings(Section):
    """The judges that are asked over HTTP: ``--scorer perspective``, ``endpoint``, and ``endpoint:NAME`` for one of
    ``endpoints``.
    """

    perspective: PerspectiveSettings = PerspectiveSettings()
    endpoint: EndpointSettings = EndpointSettings()
    endpoints: dict[Annotated[str, Field(pattern=r"^\w[\w-]*$")], EndpointSettings] = {}


# What can change between two asks of a service without changing what is asked.
_HOW_ASKED = (
    "url", "key", "key_variable", "concurrency", "requests_per_second", "timeout_seconds", "tries", "backoff_seconds",
    "longest_wait_seconds", "cache",
)  # fmt: skip


def how_asked(settings: Mapping[str, Any]) -> list[str]:
    """Dotted keys of the settings (as JSON) that say how services are asked, not what."""
    return [
        key
        for key in flatten(settings)
        # Of an experiment, its stages' services.
        if {"server", "services"} & set(key.split(".")[:2]) and key.rpartition(".")[2] in _HOW_ASKED
    ]


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


class ScoreSettings(Section):
    """``rewardlm score``: what is said of a run's answers besides what is stored.

    ``scorer`` are judges of toxicity. ``similarity`` with the prompt, perplexity under the model ``perplexity`` and
    the classes of the judge of pairs ``counter_narrative`` are found of ``quality_sample`` answers, drawn by ``seed``,
    where there are more.
    """

    scorer: NamesOrNone = []
    similarity: bool = False
    perplexity: str | None = None
    counter_narrative: str | None = None
    quality_sample: int = Field(10_000, ge=1)
    seed: int = Field(0, ge=0)
    device: str = "auto"
    max_failed_share: float = Field(0.01, ge=0, le=1)
    services: ServicesSettings = ServicesSettings()

    @model_validator(mode="after")
    def _something_is_asked(self) -> ScoreSettings:
        if not (self.scorer or self.similarity or self.perplexity or self.counter_narrative):
            raise ValueError(
                "nothing to do: name a judge with --scorer, or say similarity=true, perplexity=MODEL or "
                "counter_narrative=starter_pairs"
            )
        return self


class ImportSettings(Section):
    """``rewardlm import``: what the model is called, and which column holds what.

    ``map`` gives the column of ``prompt``, ``response``, ``prompt_toxicity``, ``prompt_id``, ``finish`` and
    ``scores.NAME``; see ``import_table``.
    Answers to toxic prompts are shown to the judge of pairs ``counter_narrative`` (none: ``counter_narrative=null``),
    ``quality_sample`` of them, drawn by ``seed``, where there are more.
    """

    label: str
    map: Annotated[dict[str, str], _BY_NAME] = {}
    counter_narrative: str | None = "starter_pairs"
    quality_sample: int = Field(200, ge=1)
    seed: int = Field(0, ge=0)
    device: str = "auto"


class TrainingSettings(ModelSettings):
    """What both trainings take.

    ``gradient_checkpointing`` runs each layer a second time in the backward pass instead of keeping what it computed:
    the same gradient, more slowly, in less memory.
    ``resume``: ``exact`` refuses to go on without a whole checkpoint. ``inexact`` allows one whose adapter is whole and
    whose optimizer or other state is damaged or missing; these start afresh, and the result is another one than that
    of an undisturbed run.
    ``shard`` divides the base's layers between the processes that torchrun or accelerate started.
    """

    lora: LoraSettings = LoraSettings()
    gradient_checkpointing: bool = False
    resume: Resume = "exact"
    shard: bool = False

    @model_validator(mode="after")
    def _an_adapter_has_its_own_rank(self) -> TrainingSettings:
        if self.adapter is not None and "lora" in self.model_fields_set:
            raise ValueError(
                f"lora (--lora-r) is for a fresh adapter, but training goes on from {self.adapter}, whose own rank "
                "stands: leave one of the two out"
            )
        return self


class FinetuneSettings(TrainingSettings):
    """``rewardlm finetune``: counter-narrative fine-tuning by TRL's SFTTrainer."""

    dialogues: str = "starter"
    validation: float = Field(0.1, ge=0, lt=1)
    limit: int | None = Field(None, ge=1)
    epochs: float = Field(1.0, gt=0)
    max_steps: int | None = Field(None, ge=1)
    learning_rate: float = Field(3e-4, gt=0)
    warmup_ratio: float = Field(0.05, ge=0, lt=1)
    batch_size: int = Field(8, ge=1)
    micro_batch_size: int | None = Field(None, ge=1)
    max_length: int = Field(512, ge=16)
    checkpoint_every: int = Field(25, ge=1)


class KlSettings(Section):
    """The penalty for leaving the reference: how it is taken, its coefficient, a target for the adaptive controller.

    ``penalty``: ``k1`` is part of the reward, at every token, as in PPO and RLOO. ``k3`` and ``full`` are losses of
    their own. ``k3``, as in GRPO's paper, is estimated from the sampled tokens, and multiplied by the policy's ratio,
    without which its gradient would be that of KL(reference ‖ policy) (DeepSeek-V3.2; TRL's default). ``full`` is the
    exact divergence over the vocabulary. None is k1 for ppo and rloo, k3 for the others. All three are in
    metrics.jsonl, k3 without the ratio.
    ``target`` in nats per answer; None keeps the coefficient fixed (Ziegler et al. 2019, section 2.2). Far off its
    target, it changes by a fifth in ``horizon`` answers.
    """

    penalty: Literal["k1", "k3", "full"] | None = None
    coef: float = Field(0.05, ge=0)
    target: float | None = Field(None, gt=0)
    horizon: int = Field(1_000, ge=1)
    max: float = Field(200.0, gt=0)

    @model_validator(mode="after")
    def _something_to_adapt(self) -> KlSettings:
        if self.target is not None and self.coef == 0:
            raise ValueError("kl.coef is 0, and a target (--kl-target) multiplies it: begin with a coefficient over 0")
        return self


class ProbeSettings(Section):
    """Texts whose order nobody doubts, by which a reward's direction is checked before step 1; ours are English."""

    toxic: list[str] = Field(min_length=1)
    benign: list[str] = Field(min_length=1)


class TermSettings(Section):
    """What else is worth something besides the judges' word: weights, 0 leaves a term out.

    ``length`` times min(1, words / ``length_words``); ``repetition`` times minus the share of words in repeated
    4-grams; ``script`` times -1 where the answer is not in the prompt's script; ``similarity`` times the cosine of
    prompt and answer; ``counter_narrative`` times the probability that it is one, by ``counter_narrative_judge``: a
    judge of pairs (``starter_pairs``, a folder from ``judge train-pairs``), or a classifier of answers whose label
    says so (``ID#label``). From a judge of pairs, what the answer would get under ``counter_narrative_others`` other
    prompts of the step is taken off, on average, so that its tone alone earns nothing; 0 takes nothing off.
    """

    length: float = Field(0.0, ge=0)
    length_words: int = Field(20, ge=1)
    repetition: float = Field(0.0, ge=0)
    script: float = Field(0.0, ge=0)
    similarity: float = Field(0.0, ge=0)
    counter_narrative: float = Field(0.0, ge=0)
    counter_narrative_judge: str = "starter_pairs"
    counter_narrative_others: int = Field(4, ge=0)


class OverlongSettings(Section):
    """DAPO's soft penalty for long answers (Yu et al. 2025, equation 13), in units of reward; ``penalty`` 0 is none.

    An answer of up to ``max_tokens`` − ``cache_tokens`` tokens (the paper's L_max and L_cache; the end token counts)
    pays nothing. From there on it pays in proportion, and ``penalty`` in full at ``max_tokens``.
    ``max_tokens`` None is ``max_new_tokens``; ``cache_tokens`` None is a fifth of ``max_tokens``, as in the paper.
    """

    penalty: float = Field(0.0, ge=0)
    max_tokens: int | None = Field(None, ge=1)
    cache_tokens: int | None = Field(None, ge=1)

    def limits(self, max_new_tokens: int) -> tuple[int, int]:
        """L_max and L_cache of answers of at most ``max_new_tokens`` tokens."""
        longest = self.max_tokens or max_new_tokens
        return longest, self.cache_tokens or max(1, longest // 5)


class RewardSettings(Section):
    """How P(toxic) becomes a reward: 1 - P, or its logit; how several judges become one; what an empty answer gets.

    ``aggregate``: the judges' mean by ``weights`` (1 where none is given), their minimum, or ``mean_std``: the mean
    less ``std_weight`` times their standard deviation, so that what they disagree about earns less (after Coste et
    al. 2024, who take off the variance).
    ``empty``: None gives an empty answer the lowest reward of its batch, a number that reward. ``probe`` is for judges
    of other languages than English.
    ``missing_eos_penalty``, in units of reward, is taken off the reward of an answer that ``max_new_tokens`` cut off,
    as TRL's setting of that name does; ``overlong`` charges long answers before they are cut off. An empty answer never
    gains by these: the lowest reward of the batch is found after them, and a fixed ``empty`` pays both in full.
    """

    transform: Literal["probability", "logit"] = "probability"
    aggregate: Literal["mean", "min", "mean_std"] = "mean"
    std_weight: float = Field(1.0, ge=0)
    weights: Annotated[dict[str, Annotated[float, Field(ge=0)]], _BY_NAME] = {}
    terms: TermSettings = TermSettings()
    empty: float | None = None
    missing_eos_penalty: float = Field(0.0, ge=0)
    overlong: OverlongSettings = OverlongSettings()
    max_failed_share: float = Field(0.01, ge=0, le=1)
    probe: ProbeSettings | None = None


class RlafSettings(TrainingSettings):
    """``rewardlm rlaf``: PPO, GRPO or RLOO against any text classifier.

    ``algorithm``: ``ppo``, ``grpo``, ``dr_grpo`` (GRPO without division by the standard deviation), ``rloo``, or an
    advantage estimator of the user's own, ``module:function``; see training.advantages.
    ``critic``: ``trunk`` is a value head on the policy's own states, ``own`` one on a second adapter that learns for
    it; None is what the algorithm needs.
    ``loss_type`` says what a token counts (training.objectives.answer_weights); ``ratio`` whether PPO's ratio is a
    token's or a whole answer's. None is what the algorithm's paper has: RLOO answers, the others tokens, averaged as
    ``bnpo`` (ppo), ``dapo`` (grpo and one's own) or ``dr_grpo``.
    ``ppo_epochs`` and ``minibatches`` are 2, but 1 each where the ratio is a whole answer's: it leaves
    ``clip_range`` at the first update, and the answers of a second would teach hardly anything. With one update a step
    ``learning_rate`` is 1e-3 there, else 2e-4.
    ``value_clip_range``, in units of reward, holds a step's new values within that distance of the old ones. None, the
    default, doesn't: what suits rewards in [0, 1] would all but stop the critic under logits within ±9.2, and the large
    comparisons found no gain in value clipping (Engstrom et al. 2020) or a loss (Andrychowicz et al. 2021). Our critic
    has a learning rate of its own, ``value_learning_rate``, for its adapter too, and a clipped gradient norm of its
    own.
    ``mask_truncated_completions`` leaves answers that ``max_new_tokens`` cut off out of the loss, as TRL's setting of
    that name does (DAPO's "overlong filtering"). They stay in what the others are compared with: their rewards, without
    their KL, in the group's mean and deviation; in PPO their advantages in what is whitened. Averages over tokens
    (``bnpo``, ``dapo``) are over those that are left; averages over answers (``grpo``, ``dr_grpo``, RLOO's) count all.
    A minibatch without an answer that ended makes no update.
    ``generation``: where answers are not drawn from the policy itself (another temperature, a truncated distribution),
    every token, or answer where the ratio is an answer's, is weighted by π/μ, at most ``importance_cap``.
    ``witness`` names judges that are no part of the reward and read every answer; ``none`` is no judge, and None is
    ``witness``, or ``lexical`` where the reward is, holds or descends from that. ``stop_on`` names warnings that shall
    end the run as NaN and a runaway KL always do.
    ``trackers`` (trackio, wandb, tensorboard) get every number of metrics.jsonl, and no text.
    """

    prompts: str = "starter"
    part: Part = "all"
    limit: int | None = Field(None, ge=1)
    reward: Names = ["starter"]
    algorithm: str = "ppo"
    critic: Literal["trunk", "own"] | None = None
    loss_type: Literal["grpo", "bnpo", "dapo", "dr_grpo"] | None = None
    ratio: Literal["token", "answer"] | None = None
    steps: int = Field(20, ge=1)
    batch_size: int = Field(32, ge=1)
    samples: int | None = Field(None, ge=1)
    max_new_tokens: int = Field(MAX_NEW_TOKENS, ge=1)
    ppo_epochs: int = Field(2, ge=1)
    minibatches: int = Field(2, ge=1)
    learning_rate: float = Field(2e-4, gt=0)
    value_learning_rate: float = Field(1e-3, gt=0)
    clip_range: float = Field(0.2, gt=0)
    value_clip_range: float | None = Field(None, gt=0)
    gamma: float = Field(1.0, gt=0, le=1)
    gae_lambda: float = Field(0.95, ge=0, le=1)
    mask_truncated_completions: bool = False
    max_grad_norm: float = Field(1.0, gt=0)
    importance_cap: float = Field(2.0, ge=1)
    max_prompt_tokens: int = Field(512, ge=8)
    micro_batch_tokens: int = Field(1024, ge=1)
    checkpoint_every: int = Field(1, ge=1)
    samples_every: int = Field(5, ge=1)
    witness: NamesOrNone | None = None
    stop_on: list[Doubt] = []
    trackers: list[Literal["trackio", "wandb", "tensorboard"]] = []
    kl: KlSettings = KlSettings()
    rewards: RewardSettings = RewardSettings()
    generation: GenerationSettings = GenerationSettings()
    services: ServicesSettings = ServicesSettings()

    @model_validator(mode="before")
    @classmethod
    def _nothing_weighs_the_critics_loss(cls, given: Any) -> Any:
        if isinstance(given, dict) and "value_coef" in given:
            raise ValueError(
                f"value_coef, got {given['value_coef']!r}, is no setting any more: policy and critic train no weight "
                "together, and AdamW takes out what a loss is multiplied by; use value_learning_rate"
            )
        return given

    @model_validator(mode="before")
    @classmethod
    def _one_update_for_whole_answers(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        ratio = given.get("ratio") or ("answer" if given.get("algorithm") == "rloo" else "token")
        if ratio != "answer":
            return given
        given = {"ppo_epochs": 1, "minibatches": 1, **given}
        # A command line has texts.
        one_update = str(given["ppo_epochs"]) == str(given["minibatches"]) == "1"
        return {"learning_rate": 1e-3, **given} if one_update else given

    @property
    def samples_per_prompt(self) -> int:
        if self.samples is not None:
            return self.samples
        return 1 if self.algorithm == "ppo" else 4

    @property
    def compares_answers(self) -> bool:
        """Whether an answer is judged by the others to the same prompt, so that one alone teaches nothing."""
        return self.algorithm in ("grpo", "dr_grpo", "rloo")

    @property
    def critic_kind(self) -> Literal["trunk", "own"] | None:
        return "trunk" if self.critic is None and self.algorithm == "ppo" else self.critic

    @property
    def ratio_of(self) -> Literal["token", "answer"]:
        return self.ratio or ("answer" if self.algorithm == "rloo" else "token")

    @property
    def kl_penalty(self) -> Literal["k1", "k3", "full"]:
        """How the KL is taken, where ``kl.penalty`` leaves that to the algorithm."""
        return self.kl.penalty or ("k1" if self.algorithm in ("ppo", "rloo") else "k3")

    @property
    def token_weights(self) -> str:
        """The ``loss_type`` that counts, by the name that training.objectives.answer_weights knows."""
        if self.ratio_of == "answer":
            return "answers"
        return self.loss_type or {"ppo": "bnpo", "dr_grpo": "dr_grpo"}.get(self.algorithm, "dapo")

    @property
    def off_policy(self) -> bool:
        """Whether answers are drawn from another distribution than the policy's own."""
        return self.generation != GenerationSettings()

    def resolved(self) -> RlafSettings:
        """The same settings with what None stands for, as a run records them."""
        chosen = {
            "critic": self.critic_kind,
            "ratio": self.ratio_of,
            "loss_type": None if self.ratio_of == "answer" else self.token_weights,
            "kl": self.kl.model_copy(update={"penalty": self.kl_penalty}),
        }
        return self.model_copy(update=chosen)

    @model_validator(mode="after")
    def _sizes_fit(self) -> RlafSettings:
        if self.batch_size % self.samples_per_prompt:
            raise ValueError(
                f"batch_size {self.batch_size} counts answers and must be divisible by "
                f"samples {self.samples_per_prompt}"
            )
        if self.batch_size < self.minibatches:
            raise ValueError(
                f"batch_size {self.batch_size} can't be cut into {self.minibatches} minibatches: lower minibatches to "
                "at most so many"
            )
        if self.compares_answers and self.samples_per_prompt < 2:
            raise ValueError(f"{self.algorithm} compares answers to the same prompt: samples must be at least 2")
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> RlafSettings:
        known = ("ppo", "grpo", "dr_grpo", "rloo")
        if self.algorithm not in known and not is_function_name(self.algorithm):
            raise ValueError(f"algorithm {self.algorithm!r}: expected one of {', '.join(known)}, or module:function")
        if self.critic is not None and self.compares_answers:
            raise ValueError(f"{self.algorithm} has no critic: leave critic out, or use ppo")
        if self.ratio == "answer" and self.algorithm == "ppo":
            raise ValueError("ratio=answer goes with one advantage an answer, and ppo's differ by token: use rloo")
        if self.ratio_of == "answer" and self.loss_type is not None:
            raise ValueError(
                "loss_type weighs tokens, and the ratio is that of whole answers: leave one of the two out"
            )
        if self.gamma < 1 and self.algorithm == "ppo" and self.rewards.empty is None:
            raise ValueError(
                "gamma under 1 discounts what an answer earns at its end, and an empty one ends at once: say what that "
                "earns (rewards.empty)"
            )
        if self.generation.temperature == 0:
            raise ValueError("generation.temperature 0 draws nothing: answers that vary are what RL learns from")
        strangers = sorted(self.rewards.weights.keys() - set(self.reward))
        if strangers:
            raise ValueError(
                f"rewards.weights names {', '.join(strangers)}, but the reward is {', '.join(self.reward)}: name its "
                "judges as --reward does"
            )
        if self.reward and all(self.rewards.weights.get(name, 1.0) == 0 for name in self.reward):
            raise ValueError("rewards.weights leaves no judge with a weight over 0")
        return self

    @model_validator(mode="after")
    def _the_penalty_for_length_can_be_paid(self) -> RlafSettings:
        longest, cache = self.rewards.overlong.limits(self.max_new_tokens)
        if self.rewards.overlong.penalty and cache > longest:
            raise ValueError(
                f"rewards.overlong.cache_tokens {cache} is more than max_tokens {longest}: expected at most that"
            )
        if self.rewards.overlong.penalty and longest - cache >= self.max_new_tokens:
            raise ValueError(
                f"rewards.overlong begins at {longest - cache} tokens, but max_new_tokens {self.max_new_tokens} ends "
                "answers before: lower rewards.overlong.max_tokens or raise max_new_tokens"
            )
        return self


class CompareSettings(Section):
    """``rewardlm compare`` and ``report``: what counts as toxic, and which outcome is the primary one.

    ``inclusive`` counts a score of exactly the threshold as toxic, as HELM and lm-eval do. ``redraw`` is a second run
    of the baseline with another seed: what it gives stands beside every flow. Not needed where the baseline has several
    answers a prompt. ``n_resamples`` sign flips are drawn, by ``seed``, where not all can be tried
    (measuring.statistics). ``primary`` is best left to the runs, which recorded it when they started.
    """

    threshold: float = Field(0.5, ge=0, le=1)
    inclusive: bool = False
    n_resamples: int = Field(10_000, ge=100)
    seed: int = Field(0, ge=0)
    redraw: Path | None = None
    primary: PrimarySettings = PrimarySettings()


class InsideSettings(Section):
    """How ``rewardlm interpret`` looks inside: how much is read, and what is tried. See interpreting.inside.

    ``toxic_words`` and ``neutral_words`` are the two sides whose logits are compared; without them, the
    ``token_words`` words of the vocabulary that a word judge finds most toxic, each with a harmless one as rare.
    ``adapter_answers`` are taken apart module by module, ``lens_positions`` read by the lens, ``probe_answers`` by the
    probe (half of them toxic if there are so many). ``value_vectors`` of the MLPs are followed, those that promote the
    toxic words most, or that lie nearest to the toxic direction. ``pairs`` of an old toxic and a new answer are
    followed along the adapter's scale in ``path_steps`` steps, and in more where these miss the whole; ``redraw_pairs``
    of a toxic and a harmless answer of the base itself say whether it prefers the harmless. ``shuffles`` of the labels
    say what the probe's best layer reaches by chance, and ``random_directions`` what a direction does by chance.
    ``causal_prompts`` different ones, at most as many as are read, are answered again, in ``max_new_tokens``, under
    every change; 0 leaves these tests out. ``ablation_prompts`` likewise without the value vectors; the words' logits
    are then read on ``ablation_answers``, and once more without each of ``random_sets`` sets of as many others: how
    many of these take as much is the test whether the base needs the named ones. ``push_margin`` is how far the
    vectors' push may be from the base's and count as the same: at 0.2 its 95 % interval must lie between 0.8 and 1.25,
    the bounds within which two medicines count as equivalent. ``null_adapters`` of random weights say what a change of
    the adapter's size does to the push by itself. ``scales`` multiply the adapter, ``layer_groups`` of neighbouring
    layers are switched off one after another (as many as layers: one layer at a time), ``strength`` times the toxic
    direction is added.
    """

    toxic_words: list[str] = []
    neutral_words: list[str] = []
    token_words: int = Field(40, ge=3)
    adapter_answers: int = Field(6, ge=1)
    lens_positions: int = Field(96, ge=1)
    probe_answers: int = Field(100, ge=12)
    probe_folds: int = Field(5, ge=2)
    value_vectors: int = Field(16, ge=1)
    vectors_by: Literal["words", "direction"] = "words"
    pairs: int = Field(4, ge=1)
    path_steps: int = Field(4, ge=1)
    redraw_pairs: int = Field(12, ge=1)
    shuffles: int = Field(20, ge=20)
    random_directions: int = Field(20, ge=20)
    push_margin: float = Field(0.2, gt=0, lt=1)
    null_adapters: int = Field(2, ge=0)
    ablation_prompts: int = Field(10, ge=0)
    ablation_answers: int = Field(12, ge=1)
    random_sets: int = Field(20, ge=20)
    causal_prompts: int = Field(30, ge=0)
    max_new_tokens: int = Field(24, ge=1)
    scales: list[float] = [0.0, 0.5, 1.0, 1.5]
    layer_groups: int = Field(5, ge=1)
    strength: float = Field(1.0, gt=0)
    batch_tokens: int = Field(2048, ge=1)
    n_resamples: int = Field(2000, ge=100)
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _both_sides_have_words(self) -> InsideSettings:
        if bool(self.toxic_words) != bool(self.neutral_words):
            raise ValueError("toxic_words and neutral_words are compared: give both or neither")
        return self


class AttributionSettings(Section):
    """Which words of prompt and answer a token rests on, and how that is found.

    ``method``: ``input_x_gradient``, ``integrated_gradients`` (from ``baseline`` to the input), ``occlusion`` (one
    token at a time replaced by ``baseline``), or ``inseq:NAME``, another method of the package inseq. ``baseline``:
    every token's embedding is that of the end token, or ``zero``. Of each answer ``tokens`` are explained, one drawn
    from each of so many equal stretches.

    Integrated gradients begin with ``steps`` points and refine until the scores miss their sum by at most ``tolerance``
    of it; a token that takes more than ``most_steps`` points has no scores.

    ``faithfulness_tokens`` of the explained tokens test the method: their context is read without the words that have
    the largest shares, and with these alone (see interpreting.faithfulness). 0 leaves the test out.
    """

    method: str = "input_x_gradient"
    tokens: int = Field(8, ge=1)
    steps: int = Field(16, ge=1)
    tolerance: float = Field(0.05, gt=0)
    most_steps: int = Field(512, ge=1)
    baseline: Literal["end", "zero"] = "end"
    faithfulness_tokens: int = Field(30, ge=0)

    @field_validator("method")
    @classmethod
    def _known(cls, method: str) -> str:
        known = ("input_x_gradient", "integrated_gradients", "occlusion")
        if method not in known and not re.fullmatch(r"inseq:\w+", method):
            raise ValueError(f"expected {', '.join(known)} or inseq:NAME")
        return method


class InterpretSettings(Section):
    """``rewardlm interpret``: what is read of how many answers.

    ``limit`` pairs of a prompt and a sample are drawn evenly over the transitions of toxicity, by ``scorer`` (None: a
    judge that was nobody's reward). ``parting_kl``, in nats, is where two models count as parted. ``dtype`` is else
    float32 on a CPU and the measurement's on a device, ``load`` the measurement's. ``look_inside`` False leaves out the
    residual stream and its directions.
    """

    limit: int = Field(30, ge=1)
    scorer: str | None = None
    seed: int = Field(0, ge=0)
    dtype: Dtype = "auto"
    load: Literal["8bit", "4bit"] | None = None
    device: str = "auto"
    batch_tokens: int = Field(512, ge=1)
    threshold: float = Field(0.5, ge=0, le=1)
    parting_kl: float = Field(0.5, gt=0)
    n_resamples: int = Field(2_000, ge=100)
    attribution: AttributionSettings = AttributionSettings()
    look_inside: bool = True
    inside: InsideSettings = InsideSettings()


class StageMeasure(Section):
    """The measurement that an experiment repeats for each model; see MeasureSettings."""

    prompts: str = "starter"
    part: Part = "all"
    limit: int | None = None
    scorer: Names = ["starter", "witness", "lexical"]
    samples: int = 1
    max_new_tokens: int = MAX_NEW_TOKENS
    batch_tokens: int = 8192
    toxic_by: str | None = None
    similarity: bool = True
    perplexity: bool = True
    counter_narrative: str | None = "starter_pairs"
    max_failed_share: float = Field(0.01, ge=0, le=1)
    generation: GenerationSettings = GenerationSettings()
    services: ServicesSettings = ServicesSettings()
    primary: PrimarySettings = PrimarySettings()


class ExperimentSettings(Section):
    """``rewardlm run``: PT, FT and RL measured on the same prompts, compared and reported.

    ``finetune`` and ``rlaf`` take the keys of their commands without model, seed, dtype, load, quantisation and device,
    which stand once at the top. ``rlaf.after`` starts RL from the fine-tuned adapter. ``interpret`` takes the keys of
    ``rewardlm interpret`` (``interpret: {}`` is its defaults, a matter of minutes); without it nothing is interpreted.
    ``stand_in=true`` puts ``stand_ins``, a tree of settings, over the others: a small model and small data with which
    the whole experiment can be tried where its own can't be had.
    """

    title: str = "RewardLM experiment"
    stand_in: bool = False
    stand_ins: dict[str, Any] = {}
    model: str
    seed: int = Field(0, ge=0)
    dtype: Dtype = "auto"
    load: Literal["8bit", "4bit"] | None = None
    quantisation: QuantisationSettings = QuantisationSettings()
    device: str = "auto"
    chat: ChatSettings = ChatSettings()
    measure: StageMeasure = StageMeasure()
    finetune: dict[str, Any] | None = None
    rlaf: dict[str, Any] | None = None
    interpret: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _stand_ins_take_their_place(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("stand_in") is not True:
            return data
        stand_ins = data.get("stand_ins")
        if not isinstance(stand_ins, dict) or not stand_ins:
            raise ValueError("stand_in is true, but the experiment has no stand_ins to put in place")
        tree = copy.deepcopy(data)
        _merge(tree, stand_ins)
        return tree

    @field_validator("rlaf")
    @classmethod
    def _keys_are_known_as_such(cls, rlaf: dict[str, Any] | None) -> dict[str, Any] | None:
        # A stage's settings are checked later, but are recorded as they stand here: what is secret must say so.
        if rlaf is None or rlaf.get("services") is None:
            return rlaf
        return {**rlaf, "services": ServicesSettings.model_validate(rlaf["services"])}

    def common(self) -> dict[str, Any]:
        """The settings that every stage shares."""
        return {
            "model": self.model,
            "seed": self.seed,
            "dtype": self.dtype,
            "load": self.load,
            "quantisation": self.quantisation.model_dump(),
            "device": self.device,
            "chat": self.chat.model_dump(),
        }


S = TypeVar("S", bound=Section)


def build(
    kind: type[S],
    *,
    file: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> S:
    """Settings of ``kind`` from defaults, YAML file, flags and overrides, the later winning.

    ``flags`` may use dotted keys; None means that the flag was not given. Raises ConfigError in one line.
    """
    tree: dict[str, Any] = {}
    _merge(tree, defaults or {})
    if file is not None:
        _merge(tree, read_yaml(file))
    for key, value in (flags or {}).items():
        if value is not None:
            _set(tree, key, value)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"override {override!r}: expected key.sub=value, for example generation.top_p=0.9")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        if isinstance(value, dict) and not text.lstrip().startswith("{"):
            value = text  # chat.user=User: is a text that ends with a colon
        _set(tree, key, _number(value))
    return validate(kind, tree)


def validate(kind: type[S], tree: Mapping[str, Any]) -> S:
    """``tree`` as settings of ``kind``; the first thing wrong with it is a ConfigError in one line."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_explain(kind, error)) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as a dict. Raises ConfigError naming file and line."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a directory: a YAML file is needed") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", error)).split())
        raise ConfigError(f"{path}{where}: not YAML ({problem})") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected keys and values at the top, got {type(tree).__name__}")
    try:
        numbers: dict[str, Any] = _numbers(tree)
    except RecursionError:
        raise ConfigError(f"{path}: an anchor (&) holds its own alias (*)") from None
    return numbers


def _number(value: Any) -> Any:
    # YAML 1.1 reads 3e-4 as text, because it wants a dot in the mantissa; people write it without.
    if isinstance(value, str):
        try:
            return float(value) if "e" in value.lower() and value.strip()[:1].isdigit() else value
        except ValueError:
            return value
    return value


def _numbers(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _numbers(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_numbers(value) for value in tree]
    return _number(tree)


def _merge(tree: dict[str, Any], other: Mapping[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, Mapping) and isinstance(tree.get(key), dict):
            _merge(tree[key], value)
        else:
            tree[key] = dict(value) if isinstance(value, Mapping) else value


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        below = tree.setdefault(parent, {})
        if not isinstance(below, dict):
            raise ConfigError(f"override {key}: {parent!r} is a value, not a section")
        tree = below
    tree[last] = value


def _explain(kind: type[Section], error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _known_keys(kind)
        near = difflib.get_close_matches(where, known, n=1)
        # How services are asked is a chapter of its own.
        listed = dict.fromkeys(re.sub(r"^(server|services)\..*", r"\1.…", name) for name in known)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(listed)}"
        return f"unknown setting {where!r}: {hint}{more}"
    if first["type"] == "missing":
        return f"setting {where!r} is missing{more}"
    message = first["msg"].removeprefix("Value error, ")
    prefix = f"setting {where!r}: " if where else ""
    # What was meant to be a key, or an address that may hold one, is not repeated.
    places = {"key", "url", "server", "services", "perspective", "endpoint", "endpoints"}
    secret = bool(places & {str(part) for part in first["loc"]})
    got = f", got {first['input']!r}" if where and not isinstance(first["input"], dict) and not secret else ""
    return f"{prefix}{message}{got}{more}"


def _known_keys(kind: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in kind.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            keys += _known_keys(annotation, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys
