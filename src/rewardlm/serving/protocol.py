"""uvicorn's HTTP/1.1 with two more limits: headers must come in time, and what is no HTTP gets JSON like all else."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from rewardlm.serving.refusals import Refusal


class PatientProtocol(H11Protocol):
    """Closes a connection whose next headers take longer than ``header_seconds``: a client that sends a byte now and
    then would otherwise hold a connection for ever. h11 reads strictly: whatever two servers might read in two ways
    (two lengths, a length and chunks, blanks before a colon) is refused.
    """

    header_seconds = 10.0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Somebody connects: the headers are awaited from now on."""
        super().connection_made(transport)
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        """Bytes come: headers that are whole stop the clock, and the beginning of further ones starts it."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before or self._is_answering():
            self._stop_waiting()
        elif self._deadline is None:
            self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        self._stop_waiting()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """What can't be read as HTTP is answered, if an answer can be sent, and the connection ends."""
        self._stop_waiting()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            # An answer is under way already: nothing can be said within it.
            self.transport.close()
            return
        data = json.dumps(Refusal(400, "Invalid HTTP request received.").body("perspective")).encode()
        headers = [
            (b"content-type", b"application/json"), (b"content-length", str(len(data)).encode()),
            (b"connection", b"close"),
        ]  # fmt: skip
        for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=data), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _await_headers(self) -> None:
        self._deadline = self.loop.call_later(self.header_seconds, self._too_late)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_late(self) -> None:
        self._deadline = None
        if not self._is_answering() and not self.transport.is_closing():
            self.transport.close()
