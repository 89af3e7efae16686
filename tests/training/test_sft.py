"""Fine-tuning on the tiny model: which tokens the loss is on, and what the files say of it."""

from __future__ import annotations

import functools
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from rewardlm.config import FinetuneSettings, ModelSettings, RlafSettings
from rewardlm.data.chat import ChatFormat, truncate_history
from rewardlm.data.dialogues import Pair
from rewardlm.data.prompts import load_prompts
from rewardlm.errors import DataError, TrainingError
from rewardlm.models.load import Policy, load_policy
from rewardlm.models.logprobs import score_rows
from rewardlm.models.lora import REFERENCE, load_adapter, reference
from rewardlm.runs import Run
from rewardlm.training import rlaf, sft, sft_trainer
from rewardlm.training.sft import finetune
from rewardlm.types import Message

TINY = {"model": "tiny", "device": "cpu", "dtype": "float32"}
CONVERSATIONS = [
    ["They only come here for the benefits.", "Most of them work, and their taxes pay for benefits too."],
    ["Women can't park.", "Insurers disagree."],
    [
        "Old people should not be allowed to vote, they won't see what comes of it.",
        "By that rule nobody with a short life ahead could vote. Is that the law you want?",
        "Yes, why not?",
        "Because a vote is for being a citizen, and it isn't a prize for the young.",
    ],
]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def dialogues(folder: Path) -> str:
    path = folder / "dialogues.jsonl"
    roles = ("user", "assistant")
    with open(path, "w") as file:
        for number, turns in enumerate(CONVERSATIONS):
            messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
            file.write(json.dumps({"id": str(number), "messages": messages}) + "\n")
    return str(path)


def settings(folder: Path, **changes) -> FinetuneSettings:
    base = {**TINY, "dialogues": dialogues(folder), "validation": 0.0, "batch_size": 4, "learning_rate": 1e-2}
    return FinetuneSettings(**{**base, **changes})


def rows(turns: list[str], tokenizer) -> tuple[list[int], list[int]]:
    """Ids and labels of a conversation's last answer, with the template's text written out here by hand."""
    head = "".join(
        f"<|im_start|>{('user', 'assistant')[i % 2]}\n{text}<|im_end|>\n" for i, text in enumerate(turns[:-1])
    )
    prompt = tokenizer(head + "<|im_start|>assistant\n")["input_ids"]
    answer = tokenizer(turns[-1] + "<|im_end|>")["input_ids"]
    assert answer[-1] == tokenizer.eos_token_id
    return prompt + answer, [-100] * len(prompt) + answer


def cross_entropy(policy: Policy, conversations: list[list[str]]) -> float:
    """Mean negative log-likelihood of the answers' tokens, one unpadded forward pass a conversation."""
    total, count = 0.0, 0
    for turns in conversations:
        ids, labels = rows(turns, policy.tokenizer)
        with torch.no_grad():
            logits = policy.causal_lm(input_ids=torch.tensor([ids])).logits[0].double()
        for t in range(1, len(ids)):
            if labels[t] != -100:
                total -= float(logits[t - 1].log_softmax(-1)[labels[t]])
                count += 1
    return total / count


PAIRS = [CONVERSATIONS[0], CONVERSATIONS[1], CONVERSATIONS[2][:2], CONVERSATIONS[2]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Run:
    """Three steps on all four pairs at once, checkpoints at 1, 2 and 3, of which two are kept."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("sft")
    return finetune(settings(folder, max_steps=3, checkpoint_every=1, epochs=3), folder / "run")


def lines(run: Run) -> list[dict]:
    return list(run.read("metrics"))


def adapter(path: Path) -> dict[str, torch.Tensor]:
    return load_file(str(path / "adapter_model.safetensors"))


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_first_loss_is_the_mean_cross_entropy_of_all_answer_tokens(trained):
    # Four rows of different lengths in one padded batch; the adapter is still zero.
    policy = load_policy(ModelSettings(**TINY))
    assert lines(trained)[0]["loss"] == pytest.approx(cross_entropy(policy, PAIRS), rel=1e-5)


def test_the_loss_falls_and_the_files_say_so(trained):
    assert [line["step"] for line in lines(trained)] == [1, 2, 3]
    assert lines(trained)[2]["loss"] < lines(trained)[0]["loss"]
    assert trained.meta["status"] == "finished"
    assert trained.meta["dialogues"]["train_pairs"] == 4


def test_microbatches_change_memory_and_not_the_result(trained, tmp_path):
    run = finetune(settings(tmp_path, max_steps=3, epochs=3, micro_batch_size=1), tmp_path / "run")
    assert [line["loss"] for line in lines(run)] == pytest.approx([line["loss"] for line in lines(trained)], rel=1e-4)


@pytest.mark.slow
def test_validation_loss_is_the_cross_entropy_of_the_held_out_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.CONVERSATIONS", CONVERSATIONS[:2])
    run = finetune(settings(tmp_path, validation=0.5, epochs=2), tmp_path / "run")
    assert run.meta["dialogues"]["train_pairs"] == run.meta["dialogues"]["validation_pairs"] == 1
    # One line a step: the evaluation stands on the line of the step that it follows.
    assert [line["step"] for line in lines(run)] == [1, 2]
    assert all({"loss", "eval_loss"} <= line.keys() for line in lines(run))
    policy = load_policy(ModelSettings(**TINY))
    untrained = [cross_entropy(policy, [turns]) for turns in CONVERSATIONS]
    learnt = min((0, 1), key=lambda i: abs(untrained[i] - lines(run)[0]["loss"]))
    assert lines(run)[0]["loss"] == pytest.approx(untrained[learnt], rel=1e-5)
    load_adapter(policy, run.path / "adapter")
    held_out = cross_entropy(policy, [CONVERSATIONS[1 - learnt]])
    assert lines(run)[-1]["eval_loss"] == pytest.approx(held_out, rel=1e-5)
    assert run.meta["eval_loss"] == lines(run)[-1]["eval_loss"]


def test_a_finished_run_is_left_alone(trained):
    before = (trained.path / "adapter" / "adapter_model.safetensors").read_bytes()
    changed = (trained.path / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    again = finetune(FinetuneSettings(**trained.meta["settings"]), trained.path)
    assert again.finished
    assert (trained.path / "adapter" / "adapter_model.safetensors").read_bytes() == before
    assert (trained.path / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == changed


@pytest.mark.parametrize("weight", ["lora_A", "lora_B"])
def test_a_gradient_that_is_not_finite_is_not_applied_and_names_the_step(tmp_path, monkeypatch, weight):
    put_on = sft.add_lora
    models = []

    def poisoned(policy, lora, *, seed):
        put_on(policy, lora, seed=seed)
        models.append(policy.model)
        parameter = next(p for n, p in policy.model.named_parameters() if weight in n)
        with torch.no_grad():
            parameter.view(-1)[0] = math.nan

    monkeypatch.setattr(sft, "add_lora", poisoned)
    with pytest.raises(TrainingError, match=r"step 1: the gradient holds NaN or infinity; the update was not applied"):
        finetune(settings(tmp_path, max_steps=2, checkpoint_every=1), tmp_path / "run")
    assert not (tmp_path / "run" / "adapter").exists()
    untouched = [p for n, p in models[0].named_parameters() if "lora_B" in n and not bool(p.isnan().any())]
    assert untouched
    assert all(not bool(parameter.any()) for parameter in untouched)


def unfinished(run: Run, folder: Path, **meta) -> Run:
    """A copy of a run as it was before its last lines were written."""
    shutil.copytree(run.path, folder)
    shutil.rmtree(folder / "adapter")
    copy = Run.open(folder)
    copy.update(status="running", **meta)
    return copy


def test_a_truncated_checkpoint_is_passed_over_for_the_one_before(trained, tmp_path):
    copy = unfinished(trained, tmp_path / "run")
    for name in ("optimizer.pt", "adapter_model.safetensors"):
        file = copy.path / "checkpoints" / "checkpoint-3" / name
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.warns(UserWarning, match=r"checkpoint-3 is damaged .*the one before it is used"):
        run = finetune(FinetuneSettings(**trained.meta["settings"]), copy.path)
    assert same(adapter(run.path / "adapter"), adapter(trained.path / "adapter"))
    assert [line["step"] for line in lines(run)] == [1, 2, 3]
    assert [line["loss"] for line in lines(run)] == [line["loss"] for line in lines(trained)]


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth"])
def test_a_missing_optimizer_or_rng_file_is_refused(trained, tmp_path, name):
    copy = unfinished(trained, tmp_path / "run")
    (copy.path / "checkpoints" / "checkpoint-3" / name).unlink()
    with pytest.raises(TrainingError, match=f"{name} is missing"):
        finetune(FinetuneSettings(**trained.meta["settings"]), copy.path)
    assert not (copy.path / "adapter").exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "adapter_model.safetensors"])
def test_with_every_checkpoint_damaged_the_run_is_refused(trained, tmp_path, name):
    copy = unfinished(trained, tmp_path / "run")
    for file in copy.path.glob(f"checkpoints/*/{name}"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(TrainingError, match=rf"checkpoint-3: {name} has another hash.*to start anew") as caught:
        finetune(FinetuneSettings(**trained.meta["settings"]), copy.path)
    assert ("resume=inexact" in str(caught.value)) == (name == "optimizer.pt")
    assert [line["step"] for line in lines(copy)] == [1, 2, 3]
    assert not (copy.path / "adapter").exists()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["missing", "truncated"])
def test_an_inexact_resume_goes_on_with_the_adapter_and_the_schedule(tmp_path, how):
    """Four steps, of which two are done: the adapter is the checkpoint's, the schedule goes on, the moments are new."""

    class Interrupted(Exception):
        pass

    def interrupt(step, steps, line):
        if step == 3:
            raise Interrupted

    chosen = settings(tmp_path, max_steps=4, epochs=4, checkpoint_every=1)
    whole = finetune(chosen, tmp_path / "whole")
    with pytest.raises(Interrupted):
        finetune(chosen, tmp_path / "run", report=interrupt)
    folders = sorted((tmp_path / "run" / "checkpoints").glob("checkpoint-*"))
    assert [folder.name for folder in folders] == ["checkpoint-1", "checkpoint-2"]
    for name in ("optimizer.pt", "rng_state.pth", "scheduler.pt"):
        for file in (folder / name for folder in folders):
            if how == "missing":
                file.unlink()
            else:
                file.write_bytes(file.read_bytes()[:50])
    inexact = chosen.model_copy(update={"resume": "inexact"})
    with pytest.warns(UserWarning, match=r"checkpoint-2 is damaged .*optimizer\.pt.*no longer bit-equal"):
        run = finetune(inexact, tmp_path / "run")
    assert run.meta["inexact_resume"] == 2
    assert [line["step"] for line in lines(run)] == [1, 2, 3, 4]
    before, now = lines(whole), lines(run)
    assert now[2]["loss"] == pytest.approx(before[2]["loss"], rel=1e-5), "the loss before step 3 is the adapter's"
    assert [line["learning_rate"] for line in now] == pytest.approx([line["learning_rate"] for line in before])
    assert not same(adapter(run.path / "adapter"), adapter(whole.path / "adapter"))


@pytest.mark.slow
def test_pairs_that_are_too_long_are_said(tmp_path):
    tokenizer = load_policy(ModelSettings(**TINY)).tokenizer
    whole = [len(rows(turns, tokenizer)[0]) for turns in PAIRS]
    # What is left when all antecedents are gone: the last prompt, with no room for an answer if it fills the limit.
    shortest_prompts = [rows(turns[-2:], tokenizer)[1].count(-100) for turns in PAIRS]
    limit = 24
    too_long = sum(length > limit for length in whole)
    left_out = sum(length >= limit for length in shortest_prompts)
    assert 0 < left_out < too_long < 4
    said = []
    run = finetune(settings(tmp_path, max_steps=1, max_length=limit), tmp_path / "run", say=said.append)
    assert len(said) == 2
    assert said[1].startswith(f"{too_long} of 4 pairs are longer than {limit} tokens: ")
    assert said[1].endswith(f"; {left_out} are left out, because they leave no room for an answer")
    found = run.meta["dialogues"]
    assert (found["shortened_histories"], found["left_out"]) == (too_long, left_out)
    assert found["train_pairs"] == 4 - left_out
    quiet: list[str] = []
    finetune(settings(tmp_path, max_steps=1), tmp_path / "whole", say=quiet.append)
    assert len(quiet) == 1
    with pytest.raises(DataError, match="raise max_length"):
        finetune(settings(tmp_path, max_steps=1, max_length=16), tmp_path / "none")


@functools.cache
def chat_of_tiny() -> ChatFormat:
    return load_policy(ModelSettings(**TINY)).chat


@hypothesis.settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 25), min_size=2, max_size=6), st.booleans(), st.integers(40, 200))
def test_too_long_a_dialogue_loses_its_oldest_exchanges_and_never_its_system_turn(lengths, ruled, limit):
    """As measuring and RL do: what is cut away is counted here by hand, turn after turn."""
    chat = chat_of_tiny()
    rules = [Message("system", "Be kind to everybody.")] if ruled else []
    said = [Message(("user", "assistant")[i % 2], "word " * n) for i, n in enumerate(lengths[: len(lengths) // 2 * 2])]
    *history, answer = said
    left = [*history]
    while len(chat.encode_pair([*rules, *left], answer).input_ids) > limit and len(left) > 1:
        del left[:2]
    wanted = chat.encode_pair([*rules, *left], answer)

    pair = Pair("a:1", "a", (*rules, *history), answer)
    found, shortened = sft._encode(chat, [pair], limit)

    assert shortened == (len(left) < len(history) or len(wanted.input_ids) > limit)
    if not any(wanted.completion_mask[:limit]):
        assert not found  # No room for an answer even after the last exchange alone.
        return
    assert found[0]["input_ids"] == wanted.input_ids[:limit]
    assert found[0]["completion_mask"] == wanted.completion_mask[:limit]
    if ruled:
        start = chat.encode_prompt([*rules, Message("user", "x")])[:8]
        assert found[0]["input_ids"][:8] == start
    room = limit - sum(wanted.completion_mask)
    prompt = wanted.input_ids[: wanted.completion_mask.index(1)]
    if len(prompt) <= room:
        assert truncate_history(chat, pair.history, room)[0] == prompt


def test_an_answer_that_was_cut_off_is_not_learnt_as_one_that_ends():
    chat = chat_of_tiny()
    whole = Pair("a:1", "a", (Message("user", "Who?"),), Message("assistant", "All of"))
    [ends], [goes_on] = (sft._encode(chat, [pair], 200)[0] for pair in (whole, replace(whole, ended=False)))
    kept = len(goes_on["input_ids"])
    assert goes_on["input_ids"] == ends["input_ids"][:kept]
    assert goes_on["completion_mask"][-1] == 1
    assert ends["input_ids"][kept] == chat.tokenizer.eos_token_id


# Reinforcement learning after fine-tuning ---------------------------------------------------------------------------


@pytest.mark.slow
def test_rl_after_fine_tuning_is_measured_against_the_fine_tuned_model(trained, tmp_path, monkeypatch):
    before = adapter(trained.path / "adapter")
    learners = []
    build = rlaf.make_learner
    monkeypatch.setattr(rlaf, "make_learner", lambda *arguments: learners.append(build(*arguments)) or learners[-1])
    chosen = RlafSettings(
        **TINY, adapter=trained.path / "adapter", batch_size=8, max_new_tokens=6, steps=2, learning_rate=1e-2
    )
    run = rlaf.train(chosen, tmp_path / "rl")
    policy = learners[0].policy

    first, second = run.read("metrics")
    assert first["kl"] == pytest.approx(0, abs=1e-4)
    assert first["first_ratio"] == pytest.approx(1, abs=1e-4)
    assert abs(second["kl"]) > 1e-3

    # The reference is the fine-tuned model, not the base, and training left it alone on disk and in memory.
    assert same(adapter(trained.path / "adapter"), before)
    held = {n: p for n, p in policy.model.named_parameters() if f".{REFERENCE}." in n}
    assert len(held) == len(before)
    for name, tensor in before.items():
        stem, _, leaf = name.rpartition(".")
        assert torch.equal(held[f"{stem}.{REFERENCE}.{leaf}"], tensor), name
    prompt, answer = [policy.chat.encode_prompt(load_prompts("starter").prompts[0].turns)], [[5, 6, 7, 8]]
    base = load_policy(ModelSettings(**TINY))
    plain = score_rows(base.causal_lm, prompt, answer, 10**6)[0]
    load_adapter(base, trained.path / "adapter")
    tuned = score_rows(base.causal_lm, prompt, answer, 10**6)[0]
    with reference(policy):
        found = score_rows(policy.causal_lm, prompt, answer, 10**6)[0]
    torch.testing.assert_close(found, tuned)
    assert not torch.allclose(found, plain, atol=1e-2)

    # The saved adapter is the whole policy: loaded alone on the base it gives the same numbers.
    assert not any(REFERENCE in name for name in adapter(run.path / "adapter"))
    assert not (run.path / "adapter" / REFERENCE).exists()
    alone = load_policy(ModelSettings(**TINY))
    load_adapter(alone, run.path / "adapter")
    torch.testing.assert_close(
        score_rows(alone.causal_lm, prompt, answer, 10**6)[0], score_rows(policy.causal_lm, prompt, answer, 10**6)[0]
    )
    assert not same(adapter(run.path / "adapter"), before)


@pytest.mark.slow
@pytest.mark.parametrize("door", ["1", "0"])
@pytest.mark.parametrize("micro", [4, 2])
def test_memory_that_runs_out_leaves_the_adapter_as_it_would_be(tmp_path, trained, monkeypatch, micro, door):
    """The allocator refuses batches of more than a row, with the gradient of earlier microbatches already there."""
    monkeypatch.setenv("REWARDLM_FASTPATH", door)
    plain, fast, tried = sft_trainer.Trainer.compute_loss, sft_trainer.loss_of, []

    def limited(loss, rows: int) -> None:
        tried.append(rows)
        if rows > 1 and len(tried) > 1:
            loss.backward()  # as if memory had run out at the end of the backward pass
            torch.empty(2**58, dtype=torch.uint8)

    def limited_plain(self, model, inputs, *args, **more):
        loss = plain(self, model, inputs, *args, **more)
        limited(loss, len(inputs["labels"]))
        return loss

    def limited_fast(causal_lm, rows, numbers):
        loss = fast(causal_lm, rows, numbers)
        limited(loss.nll, len(numbers))
        return loss

    if door == "1":
        monkeypatch.setattr(sft_trainer, "loss_of", limited_fast)
    else:
        monkeypatch.setattr(sft_trainer.Trainer, "compute_loss", limited_plain)
    with pytest.warns(UserWarning, match="out of memory with micro_batch_size"):
        run = finetune(
            settings(tmp_path, max_steps=3, checkpoint_every=1, epochs=3, micro_batch_size=micro), tmp_path / "run"
        )
    assert max(tried) == micro
    assert tried[-1] == 1
    assert lines(run)[-1]["micro_batch_size"] == 1
    assert lines(run)[-1]["out_of_memory"] >= 1
    for found, wanted in zip(lines(run), lines(trained), strict=True):
        assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-4)
        assert found["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-3)


@pytest.mark.slow
def test_recomputed_layers_train_the_same_adapter(tmp_path, trained):
    run = finetune(
        settings(tmp_path, max_steps=3, checkpoint_every=1, epochs=3, gradient_checkpointing=True), tmp_path / "run"
    )
    found, wanted = adapter(run.path / "adapter"), adapter(trained.path / "adapter")
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        # Adam's first steps are ±learning rate: where a gradient is nearly 0 rounding decides, so most must agree.
        close = torch.isclose(found[name], tensor, atol=1e-3, rtol=1e-2).float().mean()
        assert close > 0.98, name
    for one, other in zip(lines(run), lines(trained), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
