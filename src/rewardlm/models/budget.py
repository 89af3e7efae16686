"""How much is run side by side, and what happens when memory runs out: a warning, and the same again in smaller pieces.

Losses are sums with a normaliser that the pieces don't change, and answers have random streams of their own, so that
smaller pieces give the same result but for rounding.
"""

from __future__ import annotations

import ctypes
import sys
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch

from rewardlm.errors import ModelError

T = TypeVar("T")

_MALLOC_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
# What PyTorch says on a CPU, where it has no error of its own: Linux and macOS, Windows, oneDNN.
_CPU_SAYS = ("DefaultCPUAllocator: can't allocate memory", "not enough memory", "could not create a memory object")


def ran_out(error: BaseException) -> bool:
    """Whether ``error`` means that memory ran out, on a device or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _CPU_SAYS)


class Budget:
    """At most ``size`` positions (or rows: ``setting`` names what) at a time; less once memory has run out.

    ``shortages`` counts how often that was. Without ``again`` the error is raised instead.
    """

    def __init__(self, size: int, setting: str, *, again: bool = True) -> None:
        self.size, self.setting, self.again = size, setting, again
        self.shortages = 0

    def run(self, work: Callable[[int], T], *, least: int) -> T:
        """``work(size)``, again with half of it whenever memory runs out, down to ``least``, the largest single piece.

        ``work`` must undo by itself what a failed try has left behind. Raises ModelError where the least is too much.
        """
        while True:
            try:
                return work(self.size)
            except (RuntimeError, MemoryError) as error:
                if not self.again or not ran_out(error):
                    raise
                self.shrink(least, error)
            # Only here are the failed try's tensors let go: the error's traceback held them.
            free_cached()

    def shrink(self, least: int, error: BaseException) -> None:
        """Go on with half, at least ``least``, and warn of it. Raises ModelError where that would be no less."""
        if self.size <= least:
            raise ModelError(
                f"out of memory with one piece of {least} ({self.setting} {self.size}): shorten prompts or answers, "
                "train with gradient_checkpointing=true, or load less (--dtype bfloat16, --load 4bit)"
            ) from error
        before, self.size = self.size, max(least, self.size // 2)
        self.shortages += 1
        warnings.warn(
            f"out of memory with {self.setting} {before}: going on with {self.size}, with the same result but for "
            "rounding",
            stacklevel=3,
        )


def trim_heap() -> None:
    """Give back to the system what the CPU's tensors have left, where the C library can (glibc).

    What is freed between blocks that live on is else kept, and tensors of other sizes don't fit into it: in RL, whose
    microbatches are all of different lengths, hundreds of MB.
    """
    if _MALLOC_TRIM is not None:
        _MALLOC_TRIM(ctypes.c_size_t(0))


def free_cached() -> None:
    """Give the device's cached blocks back, so that other sizes fit between them."""
    trim_heap()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
