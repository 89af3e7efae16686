"""Both sides' workers on the tiny model, as make bench starts them: each does what was asked and tells what it did."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from work import Job, Told, environment

from forked import Forked
from peers import paired
from rewardlm.config.prefer import PairSettings
from rewardlm.training.drawn import DrawnAnswer
from rewardlm.training.preferences import pairs_of

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PROMPTS = 4
PAIRS = 8  # two microbatches


def start(script: str, *arguments: object) -> None:
    process = Forked([*map(str, arguments)], cwd=Path.cwd(), env=environment(1), script=BENCHMARKS / script)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err[-3000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("bench")
    start("prepare.py", "tiny", made, PROMPTS, f"rows:{PROMPTS}", f"pairs:{PAIRS}")
    return made


def told(folder: Path, what: str, side: str, samples: int = 1, prompts: int = PROMPTS, **changes: Any) -> Told:
    job = Job(
        what=what,
        side=side,
        dtype="float32",
        folder=str(folder),
        prompts=prompts,
        samples=samples,
        max_new_tokens=5,
        epochs=2,
        minibatches=2,
        warmup=1,
        threads=1,
        profile=side == "ours",
        **changes,
    )
    (folder / "job.json").write_text(json.dumps(asdict(job)))
    start("ours.py" if side == "ours" else "peers.py", folder / "job.json", folder / "told.json")
    return Told(**json.loads((folder / "told.json").read_text()))


def test_our_rl_step_is_told_with_its_lengths_and_phases(folder: Path):
    found = told(folder, "ppo", "ours")
    assert len(found.seconds) == 1
    assert found.updates == 4
    [lengths], [parts] = found.lengths, found.parts
    assert sum(lengths["answers"]) == found.answer_tokens
    assert all(1 <= length <= 5 for length in lengths["answers"])
    records = [json.loads(line) for line in (folder / f"prompts-{PROMPTS}.jsonl").read_text().splitlines()]
    assert sorted(lengths["prompts"]) == sorted(record["ids"] for record in records)
    assert {"rollout", "reward", "logprobs", "update"} <= parts.keys()
    assert 0 < sum(parts.values()) <= found.seconds[0]
    # Two layers of 64, 4 heads of which 2 are KV, 128 in the MLP; norms twice a layer and at the end.
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64
    vocabulary = json.loads((folder / "model" / "config.json").read_text())["vocab_size"]
    assert found.weights["policy"] == {
        "body": 2 * layer + 64,
        "head": vocabulary * 64,
        "layers": 2,
        "kv_width": 32,
        "width": 4,
    }
    # "Between operators" is what is left: below zero, operators would have taken longer than the step.
    assert all(row["seconds"] >= 0 for row in found.profile)


def test_both_meters_answer_and_judge_everything(folder: Path):
    ours, peer = told(folder, "meter", "ours", samples=2), told(folder, "meter", "peer", samples=2)
    assert len(ours.lengths[0]["answers"]) == 2 * PROMPTS
    for found in (ours, peer):
        assert found.seconds[0] > 0
        assert 2 * PROMPTS <= found.answer_tokens <= 2 * PROMPTS * 5
    assert sum(peer.parts[0].values()) == pytest.approx(peer.seconds[0])


@pytest.mark.parametrize("what", ["grpo", "rloo"])
def test_the_peer_makes_as_many_updates_as_asked(folder: Path, what: str):
    found = told(folder, what, "peer", samples=2)
    assert found.updates == 4
    assert len(found.seconds) == 1
    assert found.versions["trl"].startswith("1.")


def test_both_sides_fine_tune_on_the_same_batches(folder: Path):
    ours, peer = told(folder, "sft", "ours"), told(folder, "sft", "peer")
    assert ours.updates == peer.updates == 1
    assert len(ours.seconds) == len(peer.seconds) == 1
    # After one step of another random adapter, whose B was 0, at a rate of 1e-5.
    assert ours.losses == pytest.approx(peer.losses, rel=1e-3)
    batch = [json.loads(line) for line in (folder / f"rows-{PROMPTS}.jsonl").read_text().splitlines()][PROMPTS:]
    [lengths] = ours.lengths
    assert lengths["answers"] == [sum(row["completion_mask"]) for row in batch[:PROMPTS]]
    assert ours.answer_tokens == sum(lengths["answers"])


def test_both_sides_learn_the_same_pairs(folder: Path):
    ours, peer, whole = (
        told(folder, "dpo", "ours", prompts=PAIRS),
        told(folder, "dpo", "peer", prompts=PAIRS),
        told(folder, "dpo", "peer", prompts=PAIRS, dpo="own"),
    )
    for found in (ours, peer, whole):
        assert found.updates == 1
        assert len(found.seconds) == 1
        # After one step of another random adapter, whose B was 0, at a rate of 1e-5: ln 2, and a little.
        assert found.losses == pytest.approx(ours.losses, abs=2e-4)
        assert found.losses[0] == pytest.approx(0.6931, abs=1e-3)
        assert found.parts[0].keys() == {"logprobs", "update"}
        assert sum(found.parts[0].values()) == pytest.approx(found.seconds[0])
    [lengths] = ours.lengths
    assert len(lengths["prompts"]) == len(lengths["answers"]) == 2 * PAIRS
    assert lengths["prompts"][0::2] == lengths["prompts"][1::2]
    # The peer's reference is asked before the first step, or in each.
    assert ours.parts[0]["logprobs"] > 0
    assert peer.parts[0]["logprobs"] > 0
    assert whole.parts[0]["logprobs"] == 0


def test_both_sides_draw_and_judge_what_pairs_are_made_of(folder: Path):
    ours, peer = told(folder, "pairs", "ours", samples=3), told(folder, "pairs", "peer", samples=3)
    assert len(ours.lengths[0]["answers"]) == 3 * PROMPTS
    for found in (ours, peer):
        assert found.pairs is not None
        assert found.seconds[0] > 0
        assert 3 * PROMPTS <= found.answer_tokens <= 3 * PROMPTS * 5
    assert peer.parts[0].keys() == {"answers", "judge", "pairs"}
    assert sum(peer.parts[0].values()) == pytest.approx(peer.seconds[0])


def test_the_peers_pairs_are_ours():
    """The rule is the same on both sides, so neither has less to do."""
    settings = PairSettings(topic=0, topic_gap=None, length_ratio=None, ended=False, max_toxicity=0.5)
    generator = random.Random(0)
    found = 0
    for _ in range(200):
        # Sixteenths: many are equal, and no difference of two is off by rounding. Of half of the prompts no answer, or
        # hardly one, is kind enough to be chosen.
        least = generator.choice((0, 8))
        toxicity = [
            (least + round(generator.random() ** 2 * (16 - least))) / 16 for _ in range(generator.choice((2, 5, 8)))
        ]
        answers = [
            DrawnAnswer(0, place, [1, 2, 3], f"a town lies by river {place}", "stop", 1 - value, value, {})
            for place, value in enumerate(toxicity)
        ]
        ours, _ = pairs_of(answers, "Where does the town lie?", settings)
        pairs = [(one.chosen.sample, one.rejected.sample) for one in ours if one.rejected is not None]
        assert sorted(pairs) == sorted(paired(toxicity)), toxicity
        found += len(pairs)
    assert found > 50
