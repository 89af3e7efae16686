"""Memory that runs out: what counts as that, and how far a budget shrinks. The allocator's own errors, really made."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rewardlm.errors import ModelError
from rewardlm.models.budget import Budget, ran_out


def ask_for_too_much() -> None:
    torch.empty(2**58, dtype=torch.uint8)


def test_only_the_allocators_refusals_are_memory_that_ran_out():
    with pytest.raises(RuntimeError) as refusal:
        ask_for_too_much()
    assert ran_out(refusal.value)
    assert ran_out(MemoryError())
    assert ran_out(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError) as wrong_shapes:
        torch.zeros(2, 3) @ torch.zeros(2, 3)
    assert not ran_out(wrong_shapes.value)
    assert not ran_out(ValueError("can't allocate memory"))


def test_work_is_halved_until_it_fits_and_stays_so():
    budget, tried = Budget(1000, "micro_batch_tokens"), []

    def work(size: int) -> int:
        tried.append(size)
        if size > 260:
            ask_for_too_much()
        return size

    with pytest.warns(UserWarning, match="out of memory with micro_batch_tokens") as said:
        assert budget.run(work, least=10) == 250
    assert [str(warning.message).split(":")[0][-4:] for warning in said] == ["1000", " 500"]
    assert budget.run(work, least=10) == 250
    assert tried == [1000, 500, 250, 250]
    assert budget.shortages == 2


def test_the_largest_piece_is_tried_before_giving_up_in_one_line():
    budget, tried = Budget(100, "micro_batch_tokens"), []

    def work(size: int) -> None:
        tried.append(size)
        ask_for_too_much()

    with pytest.warns(UserWarning, match="out of"), pytest.raises(ModelError, match="one piece of 70") as error:
        budget.run(work, least=70)
    assert tried == [100, 70]
    assert "\n" not in str(error.value)


def test_other_errors_are_not_tried_again():
    tried = []

    def work(size: int) -> None:
        tried.append(size)
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        Budget(8, "rows").run(work, least=1)
    assert tried == [8]


LIMITED = """
import resource, sys, warnings
import torch
torch.set_num_threads(1)
from small_models import tiny_policy
from rewardlm.models.budget import Budget
from rewardlm.models.logprobs import row_stats
policy = tiny_policy()
prompts = [tuple(range(3 + i, 203 + i)) for i in range(160)]
answers = [list(range(5, 205)) for _ in prompts]
few = row_stats(policy.causal_lm, prompts, answers, 800)
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 48 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
budget = Budget(10**6, "micro_batch_tokens")
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    found = budget.run(lambda size: row_stats(policy.causal_lm, prompts, answers, size), least=400)
assert said and budget.shortages and budget.size < 64_000, (budget.size, budget.shortages)
for one, other in zip(found, few):
    torch.testing.assert_close(one.logprobs, other.logprobs, atol=1e-4, rtol=1e-4)
print(budget.size)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits a process's memory by Linux's means")
def test_a_process_whose_memory_is_limited_gets_by_with_less():
    done = subprocess.run(
        [sys.executable, "-c", LIMITED], capture_output=True, text=True, timeout=300, cwd=Path(__file__).parent
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has malloc_trim")
def test_what_is_free_between_blocks_in_use_goes_back_to_the_system():
    """In a process of its own, whose heap nobody else has used."""
    program = (
        "import psutil, torch\n"
        "from rewardlm.models.budget import trim_heap\n"
        "held = lambda: psutil.Process().memory_info().rss / 2**20\n"
        "blocks = [torch.ones(16_000) for _ in range(6_000)]\n"
        "blocks[:] = [block if row % 10 == 0 else None for row, block in enumerate(blocks)]\n"
        "full = held()\n"
        "trim_heap()\n"
        "print(full - held(), all(block is None or bool((block == 1).all()) for block in blocks))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    given_back, whole = done.stdout.split()
    # 366 MiB were taken, of which nine tenths are free.
    assert float(given_back) > 200
    assert whole == "True"
