"""Which keys may go to which hosts. Configurations come from strangers, too: a file that names both an address and an
environment variable would send any secret of the user's anywhere.

A key from the environment leaves only

* for a vendor's own host, if it is that vendor's variable (``VENDORS``);
* for a host that the user has named, from a variable that the user has named or that is a vendor's: on the command
  line, as an argument in Python, or by an environment variable that holds the address;
* for a host that the user's credentials file gives it to.

What a file says beside that never counts. A key that stands in the settings themselves goes where they say.
"""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from rewardlm.config.section import Section
from rewardlm.config.yaml_files import read_yaml
from rewardlm.errors import ConfigError

# By variable: the only host that gets it without being named.
VENDORS = {"OPENAI_API_KEY": "api.openai.com", "PERSPECTIVE_API_KEY": "commentanalyzer.googleapis.com"}


@dataclass
class Named:
    """What the user of this process has named: hosts (with a port where the address has one), and variables."""

    hosts: set[str] = field(default_factory=set)
    variables: set[str] = field(default_factory=set)

    def note(self, given: Mapping[str, Any]) -> None:
        """Every address and every variable in settings that the user gave, by dotted keys or in sections."""
        for name, value in _leaves(given):
            if name == "url" and value:
                self.hosts.add(host_of(value.get_secret_value() if isinstance(value, SecretStr) else str(value)))
            elif name == "key_variable" and isinstance(value, str):
                self.variables.add(value)


# Of this process: settings are copied, dumped and validated again on their way, and wouldn't keep who named what.
NAMED = Named()


def host_of(url: str) -> str:
    """The host of an address in lower case, with its port if it has one."""
    try:
        parts = urllib.parse.urlsplit(url.strip())
        return f"{(parts.hostname or '').lower()}{f':{parts.port}' if parts.port else ''}"
    except ValueError:
        return ""


def may_leave(variable: str, url: str) -> bool:
    """Whether the key in this environment variable may be sent to this address. Raises ConfigError for a credentials
    file that can't be read.
    """
    host = host_of(url)
    if not host:
        return False
    if VENDORS.get(variable) == host and url.lower().startswith("https:"):
        return True
    if host in NAMED.hosts and (variable in NAMED.variables or variable in VENDORS):
        return True
    return variable in _given_to(host)


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
        if str(named).lower() in (host, host.rpartition(":")[0] or host):
            found += listed
    return found


def _leaves(given: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The last part of every key, and its value."""
    if isinstance(given, Section):
        given = {key: getattr(given, key) for key in type(given).model_fields}
    if isinstance(given, Mapping):
        for key, value in given.items():
            yield from _leaves(value, str(key).rpartition(".")[2])
    elif isinstance(given, Iterable) and not isinstance(given, str | bytes):
        for value in given:
            yield from _leaves(value, name)
    else:
        yield name, given
