"""The Hugging Face hub: whether it can be reached, and what is cached from it here. Asked before anything waits for it.

The hub's own libraries retry for a minute and print two dozen lines about it; here one short request finds out.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from rewardlm.errors import RewardLMError

Kind = Literal["model", "dataset"]

_WAIT_SECONDS = 3.0
# Long enough for everything that one command asks about, shorter than it takes to mend a network.
_REMEMBERED_SECONDS = 60.0
_IN_BETWEEN = (502, 503, 504)  # what a proxy answers when nothing is behind it
_known: dict[str, tuple[float, str | None]] = {}


def require(
    repo: str, *, kind: Kind = "model", what: str, instead: str, error: type[RewardLMError] = RewardLMError
) -> None:
    """Raise ``error``, in one line, unless ``repo`` is in the cache or the hub can be reached.

    ``what`` names what was to be fetched, ``instead`` says what works without the hub.
    """
    # If a folder is missing, its loader says so.
    if repo.startswith(("/", ".", "~")) or is_cached(repo, kind) or (reason := unreachable()) is None:
        return
    raise error(
        f"can't fetch {what}: {reason}; without the hub you can use {instead}, or a cache that has it ($HF_HOME)"
    )


@contextlib.contextmanager
def access(
    repo: str, *, kind: Kind = "model", what: str, instead: str, error: type[RewardLMError] = RewardLMError
) -> Iterator[None]:
    """As ``require``; inside, the hub's libraries use the cache at once if the hub can't be reached."""
    require(repo, kind=kind, what=what, instead=instead, error=error)
    with offline_where_away():
        yield


def away() -> str | None:
    """Why the hub can't be reached, in words; None if it can be, or if the user set HF_HUB_OFFLINE or the like."""
    return None if _is_offline() else unreachable()


@contextlib.contextmanager
def offline_where_away() -> Iterator[None]:
    """Inside, if the hub can't be reached, its libraries use the cache at once, or fail at once."""
    if away() is None:
        yield
        return
    from huggingface_hub import constants

    switches = [(constants, "HF_HUB_OFFLINE")]
    if (datasets := sys.modules.get("datasets.config")) is not None:
        switches += [(datasets, "HF_HUB_OFFLINE"), (datasets, "HF_DATASETS_OFFLINE")]
    before = [getattr(module, name) for module, name in switches]
    for module, name in switches:
        setattr(module, name, True)
    try:
        yield
    finally:
        for (module, name), value in zip(switches, before, strict=True):
            setattr(module, name, value)


def unreachable() -> str | None:
    """Why the hub can't be reached, in words; None if it can be. Takes at most a few seconds, once a minute."""
    if _is_offline():
        return "HF_HUB_OFFLINE is set"
    address = endpoint()
    when, reason = _known.get(address, (float("-inf"), None))
    if time.monotonic() - when > _REMEMBERED_SECONDS:
        reason = _ask(address)
        _known[address] = (time.monotonic(), reason)
    return reason


def endpoint() -> str:
    """The hub's address: $HF_ENDPOINT, else the public one."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def is_cached(repo: str, kind: Kind = "model") -> bool:
    """Whether a snapshot of ``repo`` is in the hub's cache here; for a data set, a prepared copy counts too."""
    named = f"{kind}s--{repo.replace('/', '--')}"
    found = "config.json" if kind == "model" else "*"
    if any((_cache() / named).glob(f"snapshots/*/{found}")):
        return True
    return kind == "dataset" and any(_prepared().glob(repo.replace("/", "___")))


def _is_offline() -> bool:
    return any(
        os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"}
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def _home() -> Path:
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("HF_HOME") or f"{shared}/huggingface").expanduser()


def _cache() -> Path:
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(named).expanduser() if named else _home() / "hub"


def _prepared() -> Path:
    named = os.environ.get("HF_DATASETS_CACHE")
    return Path(named).expanduser() if named else _home() / "datasets"


def _ask(address: str) -> str | None:
    """One request, in a thread that can be given up: looking up a host name has no time-out of its own."""
    reasons: list[str | None] = []
    asking = threading.Thread(target=lambda: reasons.append(_request(address)), daemon=True)
    asking.start()
    asking.join(_WAIT_SECONDS + 1)
    return reasons[0] if reasons else f"the hub, {address}, doesn't answer"


def _request(address: str) -> str | None:
    import httpx

    try:
        status = httpx.head(address, timeout=_WAIT_SECONDS).status_code
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return f"the hub, {address}, can't be reached ({_plainly(error)})"
    return f"the hub, {address}, can't be reached (a proxy answers {status})" if status in _IN_BETWEEN else None


def _plainly(error: Exception) -> str:
    """``Connection refused``, without the number."""
    return re.sub(r"^\[Errno -?\d+\] ", "", " ".join(str(error).split())) or type(error).__name__
