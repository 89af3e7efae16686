"""The model's own answers in fine-tuning: which are learnt, how many, and what the run says of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rewardlm.config import FinetuneSettings, validate
from rewardlm.data.dialogues import load_dialogues, pairs, split_by_component
from rewardlm.errors import ConfigError
from rewardlm.measuring.quality import is_refusal, is_repeated
from rewardlm.models.generate import Request
from rewardlm.models.load import Policy
from rewardlm.runs import Run
from rewardlm.training import replay
from rewardlm.training.replay import whole_sentences
from rewardlm.training.sft import finetune

JUDGE = "test_replay:by_length"


def by_length(texts: Sequence[str]) -> list[float]:
    """Long answers are toxic, the more the longer; at 120 letters they are neither."""
    return [min(1.0, len(text) / 240) for text in texts]


def all_toxic(texts: Sequence[str]) -> list[float]:
    return [0.9] * len(texts)


def settings(**replay: object) -> FinetuneSettings:
    own = {"judge": JUDGE, "counter_narrative": None, "max_new_tokens": 24, "samples": 6, **replay}
    return validate(
        FinetuneSettings,
        {"model": "tiny", "dialogues": "starter-plain", "limit": 24, "max_steps": 2, "replay": own},
    )


@pytest.fixture(autouse=True)
def functions_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("One. Two", "One."),
        ("One! “Two?” and", "One! “Two?”"),
        ("It costs 3.50 and", ""),
        ("None here", ""),
        ("All. Of it.", "All. Of it."),
        ("", ""),
    ],
)
def test_an_answer_that_was_cut_off_ends_with_its_last_whole_sentence(text: str, whole: str) -> None:
    assert whole_sentences(text) == whole


def learnt(run: Run) -> list[tuple[str, str]]:
    return [(record["history"][-1]["text"], record["answer"]["text"]) for record in run.read("replay")]


def test_harmless_answers_to_the_dialogues_own_prompts_are_learnt_beside_them(tmp_path: Path) -> None:
    run = finetune(settings(share=0.25), tmp_path / "run")
    own = learnt(run)
    # A quarter of all: one for every three of the 24 pairs, at most.
    assert 0 < len(own) <= 8
    assert run.meta["replay"]["pairs"] == len(own)
    dialogues = load_dialogues("starter-plain").dialogues
    prompts = {pair.history[-1].text for pair in pairs(split_by_component(dialogues, validation=0.1, seed=0)[0]).pairs}
    for prompt, answer in own:
        assert prompt in prompts
        assert by_length([answer])[0] <= 0.5
        assert answer.strip()
        assert not is_refusal(answer)
        assert not is_repeated(answer)
    # No gain by this judge is a proof.
    assert run.meta["rewards"] == [JUDGE]
    assert JUDGE in run.meta["reward_lineage"]


@pytest.mark.slow
def test_the_best_of_a_prompt_is_the_least_toxic_and_several_may_be_kept(tmp_path: Path) -> None:
    one, two = (
        learnt(finetune(settings(share=0.6, samples=16, max_new_tokens=60, keep=keep), tmp_path / str(keep)))
        for keep in (1, 2)
    )
    by_prompt: dict[str, list[str]] = {}
    for prompt, answer in two:
        by_prompt.setdefault(prompt, []).append(answer)
    assert max(map(len, by_prompt.values())) == 2
    for answers in by_prompt.values():
        assert answers == sorted(answers, key=len)
    # The same prompts, in the same streams: of each that both asked, the first is the one that stood alone.
    shared = [(prompt, answer) for prompt, answer in one if prompt in by_prompt]
    assert shared
    assert all(by_prompt[prompt][0] == answer for prompt, answer in shared)


def test_a_share_of_less_than_one_pair_is_none_and_the_run_says_so(tmp_path: Path) -> None:
    # 24 pairs at 1 %: a quarter of a pair.
    run = finetune(settings(share=0.01), tmp_path / "run")
    assert learnt(run) == []
    assert "less than one" in run.meta["replay"]["summary"]


def test_by_default_there_are_none(tmp_path: Path) -> None:
    run = finetune(settings(), tmp_path / "run")
    assert not (tmp_path / "run" / "replay.jsonl").exists()
    assert run.meta["rewards"] == []
    assert "replay" not in run.meta


def test_a_run_that_was_stopped_learns_the_answers_that_it_drew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(Exception):
        pass

    def stop(step: int, *_: object) -> None:
        if step == 1:
            raise Stopped

    chosen = settings(share=0.25)
    with pytest.raises(Stopped):
        finetune(chosen, tmp_path / "run", report=stop)
    drawn = (tmp_path / "run" / "replay.jsonl").read_bytes()
    monkeypatch.setattr("rewardlm.training.sft.replayed", lambda *_: pytest.fail("drawn again"))
    finetune(chosen, tmp_path / "run")
    assert (tmp_path / "run" / "replay.jsonl").read_bytes() == drawn


def test_where_no_answer_can_be_learnt_the_dialogues_are_and_the_run_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    run = finetune(settings(share=0.25, judge="test_replay:all_toxic"), tmp_path / "run", say=said.append)
    assert any(sentence.startswith("none of 48 answers") for sentence in said)
    assert run.meta["replay"]["summary"] in said
    assert run.meta["dialogues"]["train_pairs"] == 24
    # A judge that has chosen nothing can still prove a gain.
    assert run.meta["rewards"] == []


def test_settings_that_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match=r"keep is 7, but only 6 answers are drawn"):
        settings(share=0.1, keep=7)
    with pytest.raises(ConfigError, match=r"shard=true divides it"):
        validate(FinetuneSettings, {"model": "tiny", "shard": True, "replay": {"share": 0.1}})


def test_a_prompt_has_room_beside_its_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an answer may be nearly as long as a sample, the two share the sample."""
    asked: list[Request] = []
    generate = replay.generate

    def noted(policy: Policy, requests: Sequence[Request], **how: Any) -> Any:
        asked.extend(requests)
        assert how["max_new_tokens"] == 32
        return generate(policy, requests, **how)

    monkeypatch.setattr(replay, "generate", noted)
    said: list[str] = []
    chosen = settings(share=0.25, max_new_tokens=60).model_copy(update={"max_length": 64})
    run = finetune(chosen, tmp_path / "run", say=said.append)
    lengths = [len(one.prompt) for one in asked]
    # The template alone takes some ten tokens of a prompt; 64 − 60 would leave four.
    assert 16 < max(lengths) <= 32
    assert "max_length" in run.meta["replay"]["summary"]
    assert run.meta["replay"]["summary"] in said


def test_an_experiment_refuses_own_answers_to_measured_prompts(tmp_path: Path) -> None:
    from rewardlm.config import ExperimentSettings
    from rewardlm.experiment import run_experiment

    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "Say it."}) + "\n" + json.dumps({"prompt": "And you?"}))
    experiment = validate(
        ExperimentSettings,
        {
            "model": "tiny",
            "measure": {"prompts": str(tmp_path / "p.jsonl"), "scorer": ["lexical"]},
            "finetune": {"replay": {"share": 0.5, "prompts": str(tmp_path / "p.jsonl"), "judge": "lexical"}},
        },
    )
    with pytest.raises(ConfigError, match=r"fine-tuning would train on prompts that are measured \(2, such as"):
        run_experiment(experiment, tmp_path / "out", stage=lambda _: pytest.fail("began"), say=print)
