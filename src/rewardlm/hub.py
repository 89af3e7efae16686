"""The Hugging Face hub: whether it can be reached, whether it has something, and what is cached from it here. Asked
before anything is loaded or waits.

The hub's own libraries retry for a minute and print two dozen lines about it; here short requests find out.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from rewardlm.errors import RewardLMError

Kind = Literal["model", "dataset"]

_WAIT_SECONDS = 3.0
# Long enough for everything that one command asks about, shorter than it takes to mend a network.
_REMEMBERED_SECONDS = 60.0
_IN_BETWEEN = (502, 503, 504)  # what a proxy answers when nothing is behind it
# By what was asked, an address or a repository at one: when, and why it can't be had.
_known: dict[str, tuple[float, str | None]] = {}


def require(
    repo: str, *, kind: Kind = "model", what: str, instead: str, error: type[RewardLMError] = RewardLMError
) -> None:
    """Raise ``error``, in one line, unless ``repo`` is in the cache, or the hub can be reached and has it for you.

    ``what`` names what was to be fetched, ``instead`` says what works without the hub.
    """
    # If a folder is missing, its loader says so.
    if repo.startswith(("/", ".", "~")) or is_cached(repo, kind):
        return
    if (reason := unreachable()) is not None:
        raise error(
            f"can't fetch {what}: {reason}; without the hub you can use {instead}, or a cache that has it ($HF_HOME)"
        )
    if (reason := missing(repo, kind)) is not None:
        raise error(f"can't fetch {what}: {reason}; what needs no hub: {instead}")


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
    return _remembered(address, lambda: _ask(lambda: _request(address), f"the hub, {address}, doesn't answer"))


def missing(repo: str, kind: Kind = "model") -> str | None:
    """Why a hub that can be reached doesn't hand out ``repo``, in words; None if it does. Takes at most a few seconds,
    once a minute.
    """
    address = endpoint()
    silent = f"the hub, {address}, doesn't answer when it is asked for {repo}"
    return _remembered(f"{address} {kind} {repo}", lambda: _ask(lambda: _look_up(address, repo, kind), silent))


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


def _remembered(question: str, ask: Callable[[], str | None]) -> str | None:
    """The answer to ``question``, asked once a minute."""
    when, reason = _known.get(question, (float("-inf"), None))
    if time.monotonic() - when > _REMEMBERED_SECONDS:
        reason = ask()
        _known[question] = (time.monotonic(), reason)
    return reason


def _ask(request: Callable[[], str | None], silent: str) -> str | None:
    """What ``request`` returns, in a thread that can be given up: looking up a host name has no time-out of its own.
    ``silent`` if it takes too long.
    """
    reasons: list[str | None] = []
    asking = threading.Thread(target=lambda: reasons.append(request()), daemon=True)
    asking.start()
    asking.join(_WAIT_SECONDS + 1)
    return reasons[0] if reasons else silent


def _request(address: str) -> str | None:
    import httpx

    try:
        status = httpx.head(address, timeout=_WAIT_SECONDS).status_code
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return f"the hub, {address}, can't be reached ({_plainly(error)})"
    return f"the hub, {address}, can't be reached (a proxy answers {status})" if status in _IN_BETWEEN else None


def _look_up(address: str, repo: str, kind: Kind) -> str | None:
    """Ask for ``repo`` as its libraries would, with the user's own token."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    api = HfApi(endpoint=address)
    noun = "data set" if kind == "dataset" else "model"
    try:
        if api.repo_info(repo, repo_type=kind, timeout=_WAIT_SECONDS).gated:
            api.auth_check(repo, repo_type=kind)
    except HfHubHTTPError as error:
        status = error.response.status_code
        if isinstance(error, GatedRepoError):
            return f"the {noun} {repo} is gated: ask its owner for access on its page, and log in (hf auth login)"
        if status in (401, 404):  # the hub doesn't tell one from the other
            return f"the hub, {address}, has no {noun} {repo}, or a private one (then log in: hf auth login)"
        return f"the hub, {address}, answers {status} when it is asked for {repo}; try again later"
    except Exception as error:  # What a broken connection raises depends on the HTTP library that this hub's uses.
        return f"the hub, {address}, can't be asked for {repo} ({_plainly(error)})"
    return None


def _plainly(error: Exception) -> str:
    """``Connection refused``, without the number."""
    return re.sub(r"^\[Errno -?\d+\] ", "", " ".join(str(error).split())) or type(error).__name__
