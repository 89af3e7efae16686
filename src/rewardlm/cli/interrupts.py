"""Ctrl-C and SIGTERM: the first stops a command tidily, the second ends it at once, and neither shows a traceback.

Records are appended and flushed as they come, so a run that ends in the middle of anything goes on when the same
command is given again.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_SHOW_CURSOR = b"\x1b[?25h"  # a progress bar hides it
_DEFAULTS: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


class Interrupts:
    """Which signal has asked the command to stop."""

    number: int | None = None

    @property
    def code(self) -> int:
        """What shells expect of a command that a signal ended: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + (self.number or signal.SIGINT)

    def __str__(self) -> str:
        return "stopped by SIGTERM" if self.number == signal.SIGTERM else "interrupted"


@contextmanager
def second_one_ends(*, several: bool = False) -> Iterator[Interrupts]:
    """Inside, the first Ctrl-C or SIGTERM raises KeyboardInterrupt; any further one ends the process there and then.

    The handlers stay after the first signal, because all that is left to do is to exit. A signal that is ignored
    (nohup) or handled by somebody else stays so. Of ``several`` processes, SIGTERM ends each at once: their launcher
    sends it to those that wait for one that has failed.
    """
    asked, process = Interrupts(), os.getpid()
    mine = [
        number
        for number, default in _DEFAULTS.items()
        if signal.getsignal(number) is default and not (several and number == signal.SIGTERM)
    ]
    if not mine or threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def on_signal(number: int, frame: Any) -> None:
        if number == signal.SIGTERM and os.getpid() != process:
            # A forked worker, which its pool ends so.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if asked.number is not None:
            if sys.stderr.isatty():
                os.write(2, _SHOW_CURSOR)
            # Not by an exception: libraries catch those, and the exit would wait for running threads.
            os._exit(128 + number)
        asked.number = number
        raise KeyboardInterrupt

    for number in mine:
        signal.signal(number, on_signal)
    try:
        yield asked
    finally:
        if asked.number is None:
            for number in mine:
                signal.signal(number, _DEFAULTS[number])
