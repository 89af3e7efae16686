"""Ctrl-C: the first stops a command tidily, the second ends it at once, and neither shows a traceback.

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

CODE = 130  # what shells expect of a command that SIGINT ended
_SHOW_CURSOR = b"\x1b[?25h"  # a progress bar hides it


@contextmanager
def second_one_ends() -> Iterator[None]:
    """Inside, the first Ctrl-C raises KeyboardInterrupt; any further one ends the process there and then.

    The handler stays after the first Ctrl-C, because all that is left to do is to exit. If Ctrl-C is ignored (nohup) or
    handled by somebody else, nothing changes.
    """
    theirs = signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    if theirs or threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupted = False

    def on_interrupt(number: int, frame: Any) -> None:
        nonlocal interrupted
        if interrupted:
            if sys.stderr.isatty():
                os.write(2, _SHOW_CURSOR)
            # Not by an exception: libraries catch those, and the exit would wait for running threads.
            os._exit(CODE)
        interrupted = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        if not interrupted:
            signal.signal(signal.SIGINT, signal.default_int_handler)
