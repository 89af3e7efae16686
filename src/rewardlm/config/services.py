"""How judges and models behind HTTP are asked; keys in no record."""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, SecretStr, model_validator

from rewardlm.config.fields import flatten
from rewardlm.config.section import Section


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
