"""How judges and models over HTTP are asked. No record holds a key."""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainSerializer, SecretStr, model_validator

from rewardlm.config.fields import ONE_IS_A_LIST, each_once, flatten
from rewardlm.config.keys import origin_of
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
    return f"{origin_of(url)}{urllib.parse.urlsplit(url).path.rstrip('/')}"


def _recorded_url(url: SecretStr) -> str:
    return without_secrets(url.get_secret_value())


# Users put keys into addresses, so an address is never shown, and is recorded without keys.
ServiceUrl = Annotated[
    SecretStr, AfterValidator(_checked_url), PlainSerializer(_recorded_url, return_type=str, when_used="json")
]


_KEY_VARIABLE = "The environment variable that holds the key. It is sent to nobody whom a file alone has named."


class ServiceSettings(Section):
    """How an HTTP service is asked.

    A request is tried again after a failure that may pass (429, 5xx, a time-out). The wait is as long as the service
    asks for, else a random time whose limit doubles from ``backoff_seconds``.
    """

    url: ServiceUrl | None = Field(None, description="Its address, which begins with http:// or https://.")
    key: SecretStr | None = Field(
        None, description="Its key, which no record holds; better kept in the variable that key_variable names."
    )
    key_variable: str = Field("OPENAI_API_KEY", description=_KEY_VARIABLE)
    plain_http: bool = Field(
        False, description="Ask another machine by http, where everybody on the way can read texts and the key."
    )
    concurrency: int = Field(8, ge=1, le=1024, description="Requests under way at once.")
    requests_per_second: float | None = Field(
        None, gt=0, description="Highest rate of requests; by default there is no limit."
    )
    timeout_seconds: float = Field(60.0, gt=0, description="Seconds to wait for an answer.")
    tries: int = Field(5, ge=1, description="Tries per request, if its failure may pass (429, 5xx, a time-out).")
    backoff_seconds: float = Field(
        1.0, ge=0, description="Longest first wait between two tries, in seconds; it doubles with every try."
    )
    longest_wait_seconds: float = Field(
        120.0, gt=0, description="The run ends if a service asks for a wait of more seconds than this."
    )


class ServerSettings(ServiceSettings):
    """The server of ``--engine openai``."""

    length_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="What the server calls the limit of an answer's tokens."
    )
    body: dict[str, Any] = Field(
        {}, description="Added to every request, for what a server has beyond OpenAI's API: server.body.top_k=40."
    )


class RolloutSettings(ServiceSettings):
    """The server that draws the rollouts of ``rlaf``, if there is one: vLLM, which must be able to read the run's
    folder. docs/rlaf.md says how to start it.
    """

    sync_every: int = Field(
        1,
        ge=1,
        description="Steps after which the server gets the adapter as it is then. More make answers older, and their "
        "weights uneven.",
    )


class PerspectiveSettings(ServiceSettings):
    """The judge ``perspective``, Google's Perspective API. Without a ``url`` it is $REWARDLM_PERSPECTIVE_URL, else
    Google's.
    """

    key_variable: str = Field("PERSPECTIVE_API_KEY", description=_KEY_VARIABLE)
    requests_per_second: float | None = Field(
        1.0, gt=0, description="Highest rate of requests: 1 is what Google allows without asking; null sets no limit."
    )
    attributes: Annotated[
        list[Annotated[str, Field(pattern="^[A-Z][A-Z_]*$")]], ONE_IS_A_LIST, AfterValidator(each_once)
    ] = Field(
        [
            "TOXICITY", "SEVERE_TOXICITY", "IDENTITY_ATTACK", "INSULT", "PROFANITY", "THREAT", "SEXUALLY_EXPLICIT",
            "FLIRTATION",
        ],
        min_length=1,
        description="The attributes to ask for; the first is the main label.",
    )  # fmt: skip
    languages: Annotated[list[str], ONE_IS_A_LIST] = Field(
        ["en"],
        description="The languages of the texts. With an empty list the API detects them, and refuses a text whose "
        "language it can't tell.",
    )
    cache: bool = Field(True, description="Keep answers on this machine for the day.")


class EndpointSettings(ServiceSettings):
    """A judge ``endpoint`` behind an OpenAI-compatible server.

    Without ``url``, ``kind`` or ``model``, ``services.endpoint`` takes $REWARDLM_ENDPOINT_URL, …_KIND and …_MODEL.
    """

    kind: Literal["moderation", "chat"] | None = Field(
        None,
        description="moderation asks the server's /moderations, chat has model rate texts by rubric; by default "
        "$REWARDLM_ENDPOINT_KIND, else moderation.",
    )
    model: str | None = Field(None, description="The server's model; by default $REWARDLM_ENDPOINT_MODEL.")
    rubric: str | None = Field(None, description="For chat: a rubric, or the path of one; by default our own.")
    category: str | None = Field(
        None,
        description="For moderation: the category that is the main label; by default the highest of all categories.",
    )
    categories: Annotated[list[str] | None, ONE_IS_A_LIST] = Field(
        None,
        description="For moderation: the names of its categories; by default the server is asked once, at the start.",
    )
    temperature: float | None = Field(
        0.0, ge=0, description="For chat: the sampling temperature; null leaves it out of the request."
    )
    max_tokens: int | None = Field(
        None, ge=1, description="For chat: the longest reply, in tokens; by default the request doesn't say."
    )

    @model_validator(mode="after")
    def _the_parts_fit(self) -> EndpointSettings:
        if self.kind == "chat" and (self.category is not None or self.categories is not None):
            raise ValueError("category and categories are for kind 'moderation': leave them out")
        if self.kind == "moderation" and self.rubric is not None:
            raise ValueError("a rubric is for kind 'chat': leave it out")
        if self.categories is not None and self.category is not None and self.category not in self.categories:
            raise ValueError(f"category {self.category!r} is not one of the categories {', '.join(self.categories)}")
        return self


class ServicesSettings(Section):
    """The judges that are asked over HTTP."""

    perspective: PerspectiveSettings = Field(PerspectiveSettings(), description="The judge perspective.")
    endpoint: EndpointSettings = Field(EndpointSettings(), description="The judge endpoint.")
    endpoints: dict[Annotated[str, Field(pattern=r"^\w[\w-]*$")], EndpointSettings] = Field(
        {}, description="The judges endpoint:NAME, by name; each has the settings of endpoint."
    )


# Settings that can change between two requests without changing what is asked.
_HOW_ASKED = (
    "url", "key", "key_variable", "plain_http", "concurrency", "requests_per_second", "timeout_seconds", "tries",
    "backoff_seconds", "longest_wait_seconds", "cache",
)  # fmt: skip


def how_asked(settings: Mapping[str, Any]) -> list[str]:
    """Dotted keys of the settings (as JSON) that say how services are asked, not what."""
    return [
        key
        for key in flatten(settings)
        # In an experiment they are in its stages.
        if {"server", "services", "rollout"} & set(key.split(".")[:2]) and key.rpartition(".")[2] in _HOW_ASKED
    ]
