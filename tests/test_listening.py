"""The socket that the servers on this machine share."""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from rewardlm.listening import listen


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_parts_of_an_answer_go_out_at_once(host: str) -> None:
    """Otherwise the second part waits, for 40 ms on Linux, until the client has confirmed the first (Nagle)."""
    if host == "::1" and not _has_ipv6():
        pytest.skip("this machine has no IPv6")

    async def accepted() -> int:
        loop = asyncio.get_running_loop()
        found: asyncio.Future[int] = loop.create_future()

        class Protocol(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                own = transport.get_extra_info("socket")
                found.set_result(own.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

        with listen(host, 0, free_port="0") as listening:
            async with await loop.create_server(Protocol, sock=listening):
                _, writer = await asyncio.open_connection(host, listening.getsockname()[1])
                delay_is_off = await asyncio.wait_for(found, 30)
                writer.close()
        return delay_is_off

    # In a thread of its own: a browser test before this one leaves a loop in the main thread.
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(asyncio.run, accepted()).result()


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as one:
            one.bind(("::1", 0))
    except OSError:
        return False
    return True
