"""One command on several processes (torchrun, accelerate launch): who does which share, and how results are gathered.

Every process has the same settings and comes to the same decisions; answers, judging and gradients are shared out.
What each one found is gathered, so that all of them see the same, errors included: a process that stopped alone would
leave the others waiting. The first one writes. With a single process, every method returns that one's own result.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, reduce

from rewardlm.errors import ConfigError, RunError
from rewardlm.models.load import resolve_device
from rewardlm.runs import alone

T = TypeVar("T")

# The others wait while the first judges similarity, or one with long prompts finishes. The launcher and closed
# connections tell of a process that died, not the clock.
_PATIENCE = timedelta(days=1)


def several() -> bool:
    """Whether a launcher started more than this process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def writing(out: Path, device: str) -> Iterator[Processes]:
    """The processes of a command on ``device`` (a setting) that writes ``out``, which the first of them locks
    (``runs.alone``). Raises RunError in all of them if another command writes there.
    """
    processes = Processes(cpu=str(resolve_device(device)) == "cpu")
    with ExitStack() as held:
        processes.first(lambda: held.enter_context(alone(out)))
        yield processes


def leave(code: int) -> NoReturn:
    """End this process, one of several, now: run what Python runs at exit, but don't tear the interpreter down.

    FSDP2's meshes stay in DTensor's caches, and gloo's threads with them. During teardown, Python ends a thread that
    asks for its lock to release a tensor in the middle of C++. That aborts the process (exit code -6) with all work
    done.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


class Processes:
    """The processes of this command; ``rank`` is this one's number among ``size``.

    Raises ConfigError where the launcher was told to wrap the model: RewardLM does that itself.
    """

    def __init__(self, *, cpu: bool) -> None:
        for name in ("FSDP", "DEEPSPEED"):
            if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true":
                raise ConfigError(
                    f"accelerate launch --use_{name.lower()}: leave it out; shard=true divides the base's weights"
                )
        # Alone, torch.distributed is not touched at all.
        self._state = PartialState(cpu=cpu, timeout=_PATIENCE) if several() else None
        if self._state is not None:
            # It says goodbye to the others, which would otherwise see a broken connection.
            atexit.register(self._state.destroy_process_group)
        self.rank = self._state.process_index if self._state else 0
        self.size = self._state.num_processes if self._state else 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and talks to the user."""
        return self.rank == 0

    def voice(self, say: Callable[[str], None] | None) -> Callable[[str], None]:
        """``say`` in the process that talks to the user; elsewhere, and for None, nothing is said."""
        return say if say is not None and self.is_main else _silent

    @property
    def device(self) -> str | None:
        """The accelerator that the launcher gave to this process; None where there is one process alone."""
        return None if self._state is None else str(self._state.device)

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part of ``items``: every size-th one."""
        return list(items[self.rank :: self.size])

    def span(self, n: int) -> range:
        """This process's part of n things that lie side by side."""
        return range(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def gather(self, find: Callable[[], list[T]]) -> list[T]:
        """What ``find`` returns in each process, in order of rank. An error in one process is raised in all."""
        if self.size == 1:
            return find()
        found: tuple[list[T], Exception | None]
        try:
            found = find(), None
        except Exception as error:
            found = [], error
        with linked():
            parts = gather_object([found])
        problems = [problem for _, problem in parts if problem is not None]
        if problems:
            raise problems[0]
        return [item for items, _ in parts for item in items]

    def first(self, find: Callable[[], T]) -> T:
        """What ``find`` returns in the first process, which alone calls it, as for whatever writes. Its error is raised
        in all."""
        [found] = self.gather(lambda: [find()] if self.is_main else [])
        return found

    def each(self, find: Callable[[], T]) -> T:
        """What ``find`` returns in this process; every process calls it. An error in one of them is raised in all."""
        here: list[T] = []

        def keep() -> list[None]:
            here.append(find())
            return []

        self.gather(keep)
        return here[0]

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> int:
        """Add up every process's gradients, in place. Returns how many there were, over all processes."""
        have = sum(parameter.grad is not None for parameter in parameters)
        if self.size == 1 or not parameters:
            return have
        # One message instead of hundreds; a process that had no rows adds zeros.
        flat = torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1).to(torch.float32) for p in parameters]
            + [torch.tensor([float(have)], device=parameters[0].device)]
        )
        with linked():
            flat = reduce(flat, reduction="sum")
        have = int(flat[-1])
        if have:
            pieces = flat[:-1].split_with_sizes([parameter.numel() for parameter in parameters])
            for parameter, piece in zip(parameters, pieces, strict=True):
                parameter.grad = piece.view_as(parameter).to(parameter.dtype)
        return have

    def sums(self, numbers: dict[str, float]) -> dict[str, float]:
        """Each number added up over the processes."""
        if self.size == 1:
            return numbers
        with linked():
            parts = gather_object([numbers])
        return {name: sum(part[name] for part in parts) for name in numbers}

    def wait(self) -> None:
        """Wait until all processes have come this far."""
        if self._state is not None:
            with linked():
                self._state.wait_for_everyone()


@contextmanager
def linked() -> Iterator[None]:
    """Inside, a connection that is lost because another process ended raises a RunError of one line."""
    try:
        yield
    except RuntimeError as error:
        # NCCL's errors have a type, gloo's a text.
        kinds: tuple[Any, ...] = (torch.distributed.DistBackendError, torch.distributed.DistNetworkError)
        if not isinstance(error, kinds) and "gloo" not in str(error).lower():
            raise
        raise RunError(
            "another process of this command ended: read its own message, then run the same command again to go on"
        ) from error


def _silent(_: str) -> None:
    """For processes that nobody listens to."""
