"""What the servers on this machine share (``view``, ``judge serve``): a port, and whom a request was meant for."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Iterable
from typing import Any

from rewardlm.errors import ConfigError

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
# Newer releases of FastAPI can send traces to where the environment says; older ones ignore this.
NO_TELEMETRY: Any = dict.fromkeys(("auto_configure", "tracing", "metrics", "logs", "operation_spans"), False)


def listen(host: str, port: int, *, free_port: str) -> socket.socket:
    """A socket that listens; port 0 is a free one. ``free_port`` says how a user gets a free one.

    Raises ConfigError if ``host`` and ``port`` can't be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends at once (TCP_NODELAY) only where the socket names its protocol. Without it the second part of an
    # answer waits 40 ms, until the client has confirmed the first.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    # A port that another server has just left is free.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(128)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"port {port} is taken: choose another, or {free_port} for a free one") from None
        if error.errno == errno.EACCES:
            raise ConfigError(f"port {port} is not yours to use: choose one above 1023") from None
        raise ConfigError(f"can't listen on {host}, port {port}: {error.strerror}") from None
    except OverflowError:
        listening.close()
        raise ConfigError(f"there is no port {port}: expected 0 to 65535") from None
    return listening


def address_of(host: str, listening: socket.socket) -> str:
    """The address of a server that listens there, as a browser or a script takes it; it ends with a slash."""
    return f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}/"


def is_local(host: str) -> bool:
    """Whether only this machine reaches a server on ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class OwnNames:
    """The names by which a server on ``host`` is addressed; ``more`` are others that its user vouches for.

    A foreign name can be made to point to this machine, and then a browser takes a page of that name for ours (DNS
    rebinding). So a request must be addressed to one of these names, or, where others may connect, to a number.
    """

    def __init__(self, host: str, more: Iterable[str] = ()) -> None:
        self._names = set(LOCAL_NAMES) | {name.lower() for name in more}
        if host not in LOCAL_NAMES:
            self._names |= {host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}
        self._any_number = host not in LOCAL_NAMES

    def __contains__(self, host: str) -> bool:
        """Whether the Host header ``host`` means this server. A name can be made to point here; a number can't."""
        name = _without_port(host)
        if name in self._names:
            return True
        if not self._any_number:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _without_port(host: str) -> str:
    """The name in a Host header, in lower case. The port may be any: a tunnel has its own."""
    name = host.strip().lower()
    if name.startswith("["):
        inside, closed, port = name[1:].partition("]")
        return inside if closed and (not port or _is_port(port)) else ""
    name, colon, port = name.partition(":")
    return name if not colon or _is_port(colon + port) else ""


def _is_port(text: str) -> bool:
    return text[:1] == ":" and text[1:].isascii() and text[1:].isdigit()
