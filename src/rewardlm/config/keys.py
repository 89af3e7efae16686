"""Which keys may go to which hosts. Configurations come from strangers, too: a file that names both an address and an
environment variable would send any secret of the user's anywhere.

A key from the environment leaves only

* for a vendor's own host, if it is that vendor's variable (``VENDORS``);
* for an address (scheme, host and port) that the user has named, from a variable that the user has named or that is a
  vendor's: on the command line, as an argument in Python, or by an environment variable that holds the address;
* for a host that the user's credentials file gives it to, by https or on this machine.

What a file says beside that never counts. A key that stands in a file goes where that file says; one that the user has
typed goes, like those of the environment, to no host that only a file has named.
"""

from __future__ import annotations

import ipaddress
import os
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from rewardlm.config.section import leaves_of
from rewardlm.config.yaml_files import read_yaml
from rewardlm.errors import ConfigError

# By variable: the only host that gets it without being named.
VENDORS = {"OPENAI_API_KEY": "api.openai.com", "PERSPECTIVE_API_KEY": "commentanalyzer.googleapis.com"}


@dataclass
class Named:
    """What the user of this process has named: addresses (by ``origin_of``), Ray clusters, variables, keys and rubrics;
    and whether they asked for plain http."""

    origins: set[str] = field(default_factory=set)
    clusters: set[str] = field(default_factory=set)
    variables: set[str] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)
    rubrics: set[str] = field(default_factory=set)
    plain_http: bool = False

    def note(self, given: Mapping[str, Any]) -> None:
        """Every address, variable and key in settings that the user gave, by dotted keys or in sections."""
        for key, value in leaves_of(given):
            name = key.rpartition(".")[2]
            if name == "plain_http" and value is True:
                self.plain_http = True
            text = value.get_secret_value() if isinstance(value, SecretStr) else value
            if not isinstance(text, str) or not text:
                continue
            if name == "url":
                self.origins.add(origin_of(text))
            elif name == "ray_address":
                self.clusters.add(text)
            elif name == "key_variable":
                self.variables.add(text)
            elif name == "key":
                self.keys.add(text)
            elif name == "rubric":
                self.rubrics.add(text)

    def add(self, other: Named) -> None:
        """Of another process of the same user."""
        self.origins |= other.origins
        self.clusters |= other.clusters
        self.variables |= other.variables
        self.keys |= other.keys
        self.rubrics |= other.rubrics
        self.plain_http |= other.plain_http


# Of this process: settings are copied, dumped and validated again on their way, and wouldn't keep who named what.
NAMED = Named()


def origin_of(url: str) -> str:
    """Scheme, host and port of an address, in lower case: who is asked, and how. '' for what is no address."""
    try:
        parts = urllib.parse.urlsplit(url.strip())
        host = (parts.hostname or "").lower()
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return ""
    return f"{parts.scheme.lower()}://{f'[{host}]' if ':' in host else host}{port}" if host else ""


def host_of(url: str) -> str:
    """The host of an address in lower case, with its port if it has one."""
    return origin_of(url).partition("://")[2]


def is_here(url: str) -> bool:
    """Whether the address is this very machine."""
    try:
        host = (urllib.parse.urlsplit(url).hostname or "").lower()
        address = ipaddress.ip_address(host)
    except ValueError:
        return host_of(url).partition(":")[0] == "localhost"
    return address.is_loopback or address.is_unspecified


def may_leave(variable: str, url: str) -> bool:
    """Whether the key in this environment variable may be sent to this address. Raises ConfigError for a credentials
    file that can't be read.
    """
    origin = origin_of(url)
    if not origin:
        return False
    if origin == f"https://{VENDORS.get(variable)}":
        return True
    if origin in NAMED.origins and (variable in NAMED.variables or variable in VENDORS):
        return True
    # A file must not choose to send it where everybody can read it.
    return variable in _given_to(host_of(url)) and (origin.startswith("https:") or is_here(url))


def may_be_read_along(url: str) -> bool:
    """Whether this address may be asked by http, where the settings say so: the user has said it, or has named the
    address. A file alone can't.
    """
    return NAMED.plain_http or origin_of(url) in NAMED.origins


def may_get(key: str, url: str) -> bool:
    """Whether a key that stands in the settings may be sent to this address: one that the user has typed goes to no
    host that only a file has named.
    """
    origin = origin_of(url)
    vendor = origin.removeprefix("https://") in VENDORS.values()
    return key not in NAMED.keys or origin in NAMED.origins or vendor


def credentials_file() -> Path:
    """Where the user may say which host gets which key: $XDG_CONFIG_HOME/rewardlm/credentials.yaml."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "rewardlm" / "credentials.yaml"


def _given_to(host: str) -> list[str]:
    """The variables that the credentials file gives to ``host``, by its name alone or with its port."""
    path = credentials_file()
    if not path.is_file():
        return []
    found: list[str] = []
    for named, variables in read_yaml(path).items():
        listed = variables if isinstance(variables, list) else [variables]
        if not all(isinstance(one, str) for one in listed):
            raise ConfigError(f"{path}: {named}: expected the name of an environment variable, got {variables!r}")
        if str(named).lower() in (host, re.sub(r":\d+$", "", host)):
            found += listed
    return found
