"""Needs of commands, what fits, and what doctor says of it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from rewardlm.config import LoraSettings
from rewardlm.planner import COMMANDS, Need, Planner, Work, advice, default_work, lines, planners

PROCESS = dict.fromkeys(COMMANDS, 10**8)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny() -> Planner:
    [planner] = planners("tiny", ["float32"], CPU, PROCESS)
    return planner


def test_a_peak_is_reading_the_weights_or_the_work_whichever_is_more():
    assert Need(process=1, weights=10, loading=100, adapter=5, work=50).total == 1 + 10 + 100
    assert Need(process=1, weights=10, loading=20, adapter=5, work=50).total == 1 + 10 + 55


@pytest.mark.slow
def test_reading_costs_the_files_size_where_it_is_converted():
    same, half = planners("smollm2-135m", ["float32", "bfloat16"], CPU, PROCESS)
    work = Work(64, 8, slots=1, rows=1)
    # The package's copy is stored in float32.
    assert same.need("measure", work).loading == 0
    assert half.need("measure", work).loading == pytest.approx(same.weights, rel=1e-3)
    assert half.weights == pytest.approx(same.weights / 2, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_the_largest_that_fits_does_and_half_as_much_again_does_not(tiny, command):
    work = default_work(command, 64, 16)
    start = tiny.need(command, work).total
    for capacity in (start - 10**5, start + 10**7, start + 10**9):
        rows = tiny.largest(command, work, capacity)

        def total(rows: int) -> int:
            more = replace(work, slots=rows) if command == "measure" else replace(work, rows=rows)
            return tiny.need(command, more).total

        assert rows == 0 or total(rows) <= capacity
        # Fine-tuning runs rows of 64 tokens eight at a time, however many there are: all that were traced fit.
        assert total(rows * 3 // 2 + 2) > capacity or (command == "finetune" and rows == 256 and total(8) == total(256))


@pytest.mark.slow
def test_what_fits_nowhere_is_said_and_what_fits_smaller_is_advised(tiny):
    def found(capacity: int) -> dict[str, str]:
        return advice(list(lines(tiny, 64, 16, LoraSettings(), capacity)))

    assert set(found(10**6).values()) == {"does not fit, whatever the setting"}
    assert set(found(10**12).values()) == {"--dtype float32"}
    least = tiny.need("finetune", replace(default_work("finetune", 64, 16), rows=2)).total
    assert found(least)["finetune"].startswith("--dtype float32 micro_batch_size=")


def test_training_holds_an_adapter_that_measuring_does_not_and_more_rank_is_more_of_it(tiny):
    work = Work(64, 16, slots=8, rows=8)
    assert tiny.need("measure", work).adapter == 0
    assert tiny.need("finetune", work).adapter == tiny.need("rlaf", work).adapter > 0
    assert tiny.need("prefer", work).adapter == tiny.need("rlaf", work).adapter
    larger = replace(work, lora=LoraSettings(r=64))
    assert tiny.need("rlaf", larger).adapter == 4 * tiny.need("rlaf", work).adapter


@pytest.mark.slow
def test_doctor_says_it_as_json():
    done = subprocess.run(
        [sys.executable, "-m", "rewardlm", "doctor", "tiny", "--tokens", "64", "--device", "cpu", "--json"],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # Nothing but our own progress: no library's advice (tests/cli/test_quiet.py asks the other commands).
    assert [line for line in done.stderr.splitlines() if not line.startswith("doctor: ")] == []
    found = json.loads(done.stdout)
    assert found.keys() == {"facts", "memory"}
    plan = found["memory"]
    assert plan["kv_cache_bytes_a_position"]["float32"] == 2 * 2 * 2 * 16 * 4  # layers, heads, width, bytes, and two
    assert set(plan["advice"]) == set(COMMANDS)
    by_name = {(line["precision"], line["command"], line["gradient_checkpointing"]): line for line in plan["commands"]}
    assert len(by_name) == len(plan["weights_bytes"]) * 7
    plain, recomputing = (by_name["float32", "rlaf", recompute] for recompute in (False, True))
    assert plain["bytes"]["total"] >= recomputing["bytes"]["total"] > plan["process_bytes"]["rlaf"] > 10**8
    assert plain["setting"] == "micro_batch_tokens"
    assert plain["fits"]
