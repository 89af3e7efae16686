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

    ``shortages`` counts how often memory ran out. Without ``again`` the error is raised instead.
    """

    def __init__(self, size: int, setting: str, *, again: bool = True) -> None:
        self.size, self.setting, self.again = size, setting, again
        self.shortages = 0

    def run(self, work: Callable[[int], T], *, least: int) -> T:
        """``work(size)``, repeated with half the size whenever memory runs out, down to ``least``, the largest piece.

        ``work`` must undo what a failed try has left behind. Raises ModelError where even ``least`` is too much.
        """
        while True:
            try:
                return work(self.size)
            except (RuntimeError, MemoryError) as error:
                if not self.again or not ran_out(error):
                    raise
                self.shrink(least, error)
            # The failed try's tensors can be freed only here: the error's traceback held them.
            free_cached()

    def shrink(self, least: int, error: BaseException) -> None:
        """Halve the size, down to ``least``, and warn of it. Raises ModelError where it can't get smaller."""
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
    """Give memory that the CPU's tensors no longer use back to the system, where the C library can (glibc).

    Otherwise the process keeps what is freed between blocks in use, and tensors of other sizes don't fit into it. In
    RL, whose microbatches all have different lengths, that is hundreds of MB.
    """
    if _MALLOC_TRIM is not None:
        _MALLOC_TRIM(ctypes.c_size_t(0))


def free_cached() -> None:
    """Give the device's cached blocks back, so that other sizes fit between them."""
    trim_heap()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
