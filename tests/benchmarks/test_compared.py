"""From what workers tell to ratios, η and bars; the expected numbers are worked out in the comments."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import bench
import compared
import pytest
from compared import bars, compare, markdown, tables
from work import Job, Told

from rewardlm.measuring import engines
from rewardlm.training import drawn

JOB = Job(what="ppo", side="ours", dtype="float32", folder="here", prompts=2, samples=1, max_new_tokens=3)
CALIBRATIONS = [
    {"bandwidth": 50.0, "rate": {"float32": 40.0, "bfloat16": 100.0}},
    {"bandwidth": 100.0, "rate": {"float32": 50.0, "bfloat16": 80.0}},
]
WEIGHTS = {
    "policy": {"body": 70, "head": 30, "layers": 3, "kv_width": 5, "width": 2},
    "judge": {"weights": 1000, "dtype": "bfloat16"},
}
LENGTHS = {"prompts": [[1, 2, 3, 4], [1, 2, 3, 4, 5, 6]], "answers": [3, 2], "judged": 7}
# By the faster calibration, 100 bytes, 50 and 100 operations a second (test_limits.py): rollout (840 + 120)/50 + 8 + 5;
# judge 2·1000·7/100; one pass over 6 + 2 + 1 positions and 5 tokens (1260 + 300)/50; two epochs of twice that.
ROLLOUT, REWARD, LOGPROBS, UPDATE = 32.2, 140.0, 31.2, 124.8


def told(seconds: list[float], peak: float, updates: float = 4, *, ours: bool = False) -> Told:
    if not ours:
        return Told(seconds, peak, updates)
    parts = [{"rollout": 2 * ROLLOUT, "reward": REWARD, "update": UPDATE * 4, "checkpoint": 1.0} for _ in seconds]
    return Told(seconds, peak, updates, parts=parts, lengths=[LENGTHS] * len(seconds), weights=WEIGHTS)


@pytest.fixture
def part() -> dict:
    rounds = [
        (told([900.0, 1000.0, 1300.0], 300.0, ours=True), told([2000.0], 1000.0)),  # 0.5
        (told([800.0], 310.0, ours=True), told([4000.0], 1100.0)),  # 0.2
        (told([900.0], 320.0, ours=True), told([3000.0], 900.0)),  # 0.3
    ]
    return compare(JOB, rounds, CALIBRATIONS)


def test_the_ratio_is_the_median_of_the_rounds(part):
    assert part["ratios"] == pytest.approx([0.5, 0.2, 0.3])
    assert part["ratio"] == pytest.approx(0.3)
    assert part["memory_ratio"] == pytest.approx(310 / 1000)


def test_eta_is_the_limit_over_what_was_measured(part):
    rows = {row["phase"]: row for row in part["phases"]}
    assert rows["rollout"]["limit"] == pytest.approx(ROLLOUT)
    assert rows["reward"]["limit"] == pytest.approx(REWARD)
    assert rows["update"]["limit"] == pytest.approx(UPDATE)
    assert rows["rollout"]["eta"] == pytest.approx(0.5)
    assert rows["reward"]["eta"] == pytest.approx(1)
    assert rows["update"]["eta"] == pytest.approx(0.25)
    assert rows["checkpoint"]["eta"] is None
    # The whole has the limit of every phase, also of one that took no time; the median of 800, 900, 900, 1000, 1300.
    assert rows["whole"]["limit"] == pytest.approx(ROLLOUT + REWARD + LOGPROBS + UPDATE)
    assert rows["whole"]["seconds"] == 900


def test_the_meter_decodes_a_window_at_a_time():
    job = replace(JOB, what="meter", samples=8)
    lengths = {"prompts": [[1, 2]] * 300, "answers": [2] * 300, "judged": 0}
    ours = Told([10.0], 1.0, lengths=[lengths], weights=WEIGHTS)
    part = compare(job, [(ours, Told([50.0], 1.0))], CALIBRATIONS)
    # Windows of 256 and 44: the prompt's two positions and the heads of all rows, then one step, bound by reading
    # (200 + 60·2·b)/100, since 200·b/50 is more: b = 256 and 44.
    prefill = (2 * 140 + 256 * 60) / 50 + (2 * 140 + 44 * 60) / 50
    decode = max((200 + 120 * 256) / 100, 200 * 256 / 50) + max((200 + 120 * 44) / 100, 200 * 44 / 50)
    [whole] = part["phases"]
    assert part["what"] == "meter ×8"
    assert whole["limit"] == pytest.approx(prefill + decode)
    assert part["memory_bar"] is None


def test_answers_for_pairs_are_drawn_a_chunk_of_prompts_at_a_time():
    job = replace(JOB, what="pairs", samples=2)
    lengths = {"prompts": [[1, 2]] * 70, "answers": [1] * 70, "judged": 7}
    ours = Told([10.0], 1.0, lengths=[lengths], weights=WEIGHTS, pairs=9)
    part = compare(job, [(ours, Told([50.0], 2.0, pairs=8))], CALIBRATIONS)
    [whole] = part["phases"]
    # Chunks of 32 prompts × 2 answers: 64 and 6 rows, whose two positions run once a chunk.
    assert whole["limit"] == pytest.approx((2 * 140 + 64 * 60) / 50 + (2 * 140 + 6 * 60) / 50 + REWARD)
    assert part["pairs"] == {"ours": 9, "peer": 8}
    assert [bar["what"] for bar in bars(part)] == ["pairs seconds, ours / peer", "pairs η of the run"]


def test_the_limit_takes_as_many_at_a_time_as_the_commands_do():
    assert (compared.WINDOW, compared.CHUNK) == (engines.WINDOW, drawn.CHUNK)


def test_fine_tuning_is_one_pass_forwards_and_backwards():
    job = replace(JOB, what="sft", prompts=2, epochs=1, minibatches=1)
    lengths = {name: LENGTHS[name] for name in ("prompts", "answers")}
    ours = Told([100.0], 1.0, updates=1, lengths=[lengths], weights={"policy": WEIGHTS["policy"]})
    part = compare(job, [(ours, Told([400.0], 4.0, updates=1))], CALIBRATIONS)
    [whole] = part["phases"]
    assert whole["limit"] == pytest.approx(UPDATE / 2)
    assert [bar["met"] for bar in bars(part)] == [True, True, True]  # 0.25 and 0.25 of the peer's, η 0.624
    assert [bar["bar"] for bar in bars(part)] == ["at most 0.50", "at most 0.50", "at least 0.50"]


def test_sides_that_did_other_numbers_of_updates_are_not_compared():
    with pytest.raises(ValueError, match="2 optimizer steps a step, expected 4"):
        compare(JOB, [(told([1.0], 1.0, ours=True), told([1.0], 1.0, updates=2))], CALIBRATIONS)


def test_bars_are_met_or_missed(part):
    found = {bar["what"]: bar["met"] for bar in bars(part)}
    assert found == {
        "ppo seconds, ours / peer": True,  # 0.3, at most 0.4
        "ppo peak memory, ours / peer": True,  # 0.31, at most 1/3
        "ppo η of the rollouts": True,  # 0.5
        "ppo η of the step": False,  # 328.2 / 900
    }
    slower = {**part, "ratio": 0.41, "memory_ratio": 0.34}
    assert [bar["met"] for bar in bars(slower)][:2] == [False, False]


def test_tables_have_a_cell_for_each_heading(part):
    part["profile"] = [{"kind": "products", "seconds": 3.0, "share": 0.75}]
    for headings, rows in tables([part, {**part, "profile": []}]):
        assert rows
        assert all(len(row) == len(headings) for row in rows)
    lines = markdown(["a", "b"], [["1", "2"]]).splitlines()
    assert lines == ["| a | b |", "| --- | --- |", "| 1 | 2 |"]
    assert markdown(["a"], []) == ""


def test_the_page_is_written_from_all_parts_only(part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page = tmp_path / "performance.md"
    page.write_text(f"{bench.BEGIN}\nold\n{bench.END}\n")
    monkeypatch.setattr(bench, "PAGE", page)
    names = [f"{what}/{dtype}" for what in bench.PARTS for dtype in ("float32", "bfloat16")]
    known = {
        "parts": {name: {"date": "2026-01-01", **part} for name in names},
        "alone": {},
        "machine": {"cpu": "a CPU", "threads": 1, "cores": 2, "clock": "CPU", "load": 3.0},
    }
    file = tmp_path / "results.json"
    monkeypatch.setattr(sys, "argv", ["bench.py", "--page", "--out", str(file)])
    with pytest.raises(SystemExit, match=r"lacks ppo/float32, .*meter8/bfloat16: run make bench"):
        bench.main()
    file.write_text(json.dumps({**known, "parts": {name: known["parts"][name] for name in names[1:]}}))
    with pytest.raises(SystemExit, match=r"lacks ppo/float32: run"):
        bench.main()
    assert "old" in page.read_text()
    file.write_text(json.dumps(known))
    bench.main()
    assert "old" not in page.read_text()
    assert page.read_text().count("| ppo | float32 | 2 |") == len(names)


def test_the_page_keeps_what_stands_around_the_tables(part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page = tmp_path / "performance.md"
    page.write_text(f"before\n{bench.BEGIN}\nold\n{bench.END}\nafter\n")
    monkeypatch.setattr(bench, "PAGE", page)
    where = {"cpu": "a CPU", "threads": 1, "cores": 2, "clock": "CPU", "load": 3.0}
    alone = {"help": {"date": "2026-01-01", "what": "help, seconds", "found": 0.5, "most": bench.HELP_BAR}}
    known = {"parts": {"ppo/float32": {"date": "2026-01-01", **part}}, "alone": alone, "machine": where}
    bench.write_page(json.loads(json.dumps(known)))
    bench.write_page(json.loads(json.dumps(known)))
    text = page.read_text()
    assert text.startswith(f"before\n{bench.BEGIN}\na CPU, 1 of 2 cores")
    assert text.endswith(f"{bench.END}\nafter\n")
    assert "old" not in text
    assert "| ppo | float32 | 2 | 900.0 | 3000.0 | **0.30** (0.20–0.50) | 0.40 |" in text
    assert (
        "Bars that are missed: ppo η of the step (float32) 0.365, at least 0.50; help, seconds 0.500, at most 0.4."
        in text
    )
