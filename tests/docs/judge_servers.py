"""``rewardlm judge serve`` on a page: the same server, but in a thread, so that the page goes on while it answers."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

import pytest

PRINTED = "http://127.0.0.1:8000"
_LONGEST = 120.0


class JudgeServers:
    """Servers that pages started. Each has a port of its own, and ``here`` puts the last one's in a page's place."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.address: str | None = None
        self._patch = patch
        self._threads: list[threading.Thread] = []
        self._processes: list[Any] = []
        self._patched = False

    def prepare(self) -> None:
        """Have the command start its server in a thread from now on."""
        from rewardlm.serving import serve

        if self._patched:
            return
        self._patched = True
        run, make = serve.serve, serve.make_process

        def make_process(*arguments: Any) -> Any:
            self._processes.append(make(*arguments))
            return self._processes[-1]

        def in_a_thread(settings: Any, *, say: Callable[[str], None]) -> None:
            said: queue.Queue[Any] = queue.Queue()

            def work() -> None:
                try:
                    run(settings.model_copy(update={"port": 0}), say=said.put)
                except BaseException as error:
                    said.put(error)

            self._threads.append(threading.Thread(target=work, daemon=True))
            self._threads[-1].start()
            line = said.get(timeout=_LONGEST)
            if isinstance(line, BaseException):
                raise line
            self.address, _, rest = line.partition("/ ")
            say(f"{PRINTED}/ {rest}")

        try:
            from googleapiclient import discovery
        except ModuleNotFoundError:
            pass
        else:
            # A page shows how to replace this; the test's end puts it back.
            self._patch.setattr(discovery, "build", discovery.build)
        self._patch.setattr(serve, "make_process", make_process)
        self._patch.setattr(serve, "serve", in_a_thread)

    def here(self, code: str) -> str:
        """``code`` with the address of the server that the page started, if it started one."""
        return code if self.address is None else code.replace(PRINTED, self.address)

    def close(self) -> None:
        for process in self._processes:
            process.tell_to_end()
        for thread in self._threads:
            thread.join(_LONGEST)
            assert not thread.is_alive(), "a page's server did not end"
