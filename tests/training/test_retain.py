"""Plain text on which a training holds the model to its base: its gradient against a plain formula, and its effect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rewardlm.config import FinetuneSettings, LoraSettings, ModelSettings, PreferSettings, RetainSettings, RlafSettings
from rewardlm.errors import ConfigError, DataError
from rewardlm.models.load import Policy, load_policy
from rewardlm.models.lora import add_lora, load_adapter
from rewardlm.models.processes import Processes
from rewardlm.runs import Run
from rewardlm.training import retain
from rewardlm.training.prefer import prefer
from rewardlm.training.retain import Retained, retained
from rewardlm.training.rlaf import train
from rewardlm.training.sft import finetune

TINY = {"model": "tiny", "device": "cpu", "dtype": "float32"}
RETAIN = RetainSettings(coef=2.0, pieces=6, tokens=16, batch=4)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def tiny_with_adapter() -> Policy:
    """The tiny model with an adapter that does something."""
    policy = load_policy(ModelSettings(**TINY))
    add_lora(policy, LoraSettings(r=4, dropout=0.5), seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    return policy


def held_on(policy: Policy, tmp_path: Path, retain: RetainSettings = RETAIN, **more: object) -> Retained:
    settings = PreferSettings(**TINY, retain=retain, **more)
    run = Run.start(tmp_path / "run", kind="prefer", label="DPO", settings={})
    found = retained(policy, settings, run, Processes(cpu=True), lambda _: None)
    assert found is not None
    return found


def gradients(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}


def plain_kl(policy: Policy, texts: list[list[int]]) -> torch.Tensor:
    """The mean over tokens of KL(base ‖ model): each text by itself, each position's distribution written out."""
    kls = []
    for text in texts:
        tokens = torch.tensor([text])
        with torch.no_grad(), policy.model.disable_adapter():
            base = policy.model(input_ids=tokens).logits[0].double().softmax(-1)
        model = policy.model(input_ids=tokens).logits[0].double().log_softmax(-1)
        for place in range(len(text) - 1):
            kls.append((base[place] * (base[place].log() - model[place])).sum())
    return torch.stack(kls).mean()


@pytest.mark.parametrize("recompute", [False, True])
def test_its_gradient_is_that_of_the_mean_divergence_on_the_updates_pieces(tmp_path, recompute):
    policy = tiny_with_adapter()
    held = held_on(policy, tmp_path, gradient_checkpointing=recompute)
    assert len(held.pieces) == 6
    policy.model.train()
    # The second update's pieces: the last two, and the first two again.
    said = held.add_gradient(1)
    ours = gradients(policy)
    policy.model.zero_grad()
    policy.model.eval()
    wanted = plain_kl(policy, [held.pieces[i] for i in (4, 5, 0, 1)])
    (2.0 * wanted).backward()
    theirs = gradients(policy)
    assert said == pytest.approx(wanted.item(), rel=1e-4)
    assert said > 0.01
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_it_is_added_to_the_gradient_that_is_there_and_nought_for_the_base(tmp_path):
    policy = load_policy(ModelSettings(**TINY))
    add_lora(policy, LoraSettings(r=4), seed=0)
    held = held_on(policy, tmp_path)
    before = {}
    for name, parameter in policy.model.named_parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
            before[name] = parameter.grad.clone()
    assert held.add_gradient(0) == pytest.approx(0, abs=1e-6)
    for name, gradient in gradients(policy).items():
        torch.testing.assert_close(gradient, before[name], rtol=0, atol=1e-4)


class OneOf(Processes):
    """One of several processes, by itself."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(cpu=True)
        self.rank, self.size = rank, size


@pytest.mark.parametrize("averaged", [False, True])
def test_the_shares_of_processes_add_up_to_the_whole(tmp_path, averaged):
    policy = tiny_with_adapter()
    held = held_on(policy, tmp_path)
    whole, shares = held.add_gradient(0), 0.0
    expected = gradients(policy)
    policy.model.zero_grad()
    for rank in range(3):
        share = Retained(policy, 2.0, 4, held.pieces, held.states, OneOf(rank, 3), recompute=False)
        shares += share.add_gradient(0, averaged=averaged)
    assert shares == pytest.approx(whole, rel=1e-5)
    for name, gradient in gradients(policy).items():
        found = gradient / 3 if averaged else gradient
        torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-6)


def test_pieces_are_the_bases_own_text_and_the_same_again(tmp_path):
    policy = tiny_with_adapter()
    held = held_on(policy, tmp_path)
    again = held_on(load_policy(ModelSettings(**TINY)), tmp_path / "base")
    assert held.pieces == again.pieces  # whatever the adapter would write
    assert len({piece[0] for piece in held.pieces}) > 1
    special = set(policy.tokenizer.all_special_ids)
    for piece, states in zip(held.pieces, held.states, strict=True):
        assert 8 <= len(piece) <= 16
        assert not special & set(piece)
        assert policy.tokenizer.decode(piece[:1]).strip().isalpha()
        with torch.no_grad(), policy.model.disable_adapter():
            expected = policy.model(input_ids=torch.tensor([piece]), output_hidden_states=True).hidden_states[-1]
        torch.testing.assert_close(states, expected[0, :-1], rtol=1e-3, atol=1e-4)
    kept = list(Run.open(tmp_path / "run").read("retain"))
    assert [line["tokens"] for line in kept] == held.pieces
    assert kept[0]["text"] == policy.tokenizer.decode(held.pieces[0])


def test_a_file_of_ones_own_is_read_line_by_line(tmp_path):
    lines = ["short", "a line that is long enough to be cut, because it goes on and on " * 3, "one two three " * 9]
    (tmp_path / "plain.txt").write_text("\n".join(lines) + "\n")
    policy = tiny_with_adapter()
    own = RETAIN.model_copy(update={"source": str(tmp_path / "plain.txt")})
    held = held_on(policy, tmp_path, own)
    encoded = [policy.tokenizer(line, add_special_tokens=False)["input_ids"] for line in lines[1:]]
    assert held.pieces == [tokens[:16] for tokens in encoded]
    (tmp_path / "plain.txt").write_text("short\n")
    with pytest.raises(DataError, match="no line has 8 tokens"):
        held_on(policy, tmp_path / "again", own)
    with pytest.raises(DataError, match="missing"):
        held_on(policy, tmp_path / "gone", RETAIN.model_copy(update={"source": str(tmp_path / "missing.txt")}))


def test_of_a_long_file_lines_from_all_of_it_are_retained(tmp_path):
    """A file may be sorted by subject."""
    lines = [f"line number {number} is about one thing and has tokens enough" for number in range(400)]
    (tmp_path / "plain.txt").write_text("\n".join(lines) + "\n")
    policy = tiny_with_adapter()
    own = RETAIN.model_copy(update={"source": str(tmp_path / "plain.txt"), "pieces": 20})
    numbers = [int(policy.tokenizer.decode(piece).split()[2]) for piece in held_on(policy, tmp_path, own).pieces]
    assert len(set(numbers)) == 20
    assert numbers == sorted(numbers)
    assert {number // 100 for number in numbers} == {0, 1, 2, 3}


def test_what_can_not_be_is_refused(tmp_path):
    policy = load_policy(ModelSettings(**TINY))
    add_lora(policy, LoraSettings(r=4, targets=["lm_head"]), seed=0)
    with pytest.raises(ConfigError, match="take the head out"):
        held_on(policy, tmp_path)
    with pytest.raises(ValueError, match="whole model to write"):
        PreferSettings(**TINY, retain=RETAIN, shard=True)
    for kind, more in ((PreferSettings, {"method": "kto"}), (FinetuneSettings, {}), (RlafSettings, {})):
        with pytest.raises(ValueError, match=r"retain\.coef is 0 here, so nothing is retained"):
            kind(**TINY, retain={"source": "mine.txt"}, **more)


def test_by_default_dpo_retains_and_the_others_do_not(tmp_path):
    default = PreferSettings(**TINY).resolved()
    assert (default.retain.coef, default.learning_rate) == (8, 2.5e-3)
    for method in ("kto", "raft"):
        assert PreferSettings(**TINY, method=method).retain_coef == 0
    # Without it, the rate is lower.
    for left_out in ({"shard": True}, {"retain": {"coef": 0}}, {"retain": {"coef": "0"}}):
        without = PreferSettings(**TINY, **left_out).resolved()
        assert (without.retain.coef, without.learning_rate) == (0, 8e-4)
    assert PreferSettings(**TINY, retain={"coef": 0}, learning_rate=1e-3).rate == 1e-3
    mine = PreferSettings(**TINY, shard=True, retain={"source": "mine.txt"})
    assert (mine.retain_coef, mine.rate) == (8, 2.5e-3)
    assert FinetuneSettings(**TINY).retain_coef == RlafSettings(**TINY, reward=["lexical"]).retain_coef == 0
    # Where the default can't be, it is left out, and that is said.
    policy, said = load_policy(ModelSettings(**TINY)), []
    add_lora(policy, LoraSettings(r=4, targets=["lm_head"]), seed=0)
    run = Run.start(tmp_path / "run", kind="prefer", label="DPO", settings={})
    assert retained(policy, PreferSettings(**TINY), run, Processes(cpu=True), said.append) is None
    assert "not held to its base" in said[0]


def test_a_model_that_writes_nothing_is_not_said_to_be_held(tmp_path, monkeypatch):
    monkeypatch.setattr(retain, "_own_text", lambda *_: [])
    policy, said = tiny_with_adapter(), []
    run = Run.start(tmp_path / "run", kind="prefer", label="DPO", settings={})
    assert retained(policy, PreferSettings(**TINY), run, Processes(cpu=True), said.append) is None
    assert said == [
        "the model is not held to its base on plain text (retain): tiny writes no text of 8 tokens by itself. A lower "
        "--learning-rate, such as 8e-4, fits that"
    ]
    asked = Run.start(tmp_path / "asked", kind="prefer", label="DPO", settings={})
    with pytest.raises(DataError, match=r"give retain\.source a text file"):
        retained(policy, PreferSettings(**TINY, retain=RETAIN), asked, Processes(cpu=True), said.append)


def learn_by_preference(out: Path, retain: RetainSettings) -> Run:
    return prefer(
        PreferSettings(
            **TINY, prompts="starter", limit=12, reward=["lexical"], witness=[], samples=4, steps=6, batch_size=8,
            max_new_tokens=6, learning_rate=0.02, sft_weight=0, retain=retain,
            rewards={"transform": "probability", "terms": {"refusal": 0, "similarity": 0, "counter_narrative": 0}},
            pairs={"margin": 0.01, "topic": 0, "topic_gap": None},
        ),
        out,
    )  # fmt: skip


def learn_dialogues(out: Path, retain: RetainSettings) -> Run:
    return finetune(
        FinetuneSettings(**TINY, limit=16, max_steps=6, batch_size=4, learning_rate=0.02, retain=retain), out
    )


def learn_by_rl(out: Path, retain: RetainSettings) -> Run:
    return train(
        RlafSettings(
            **TINY, prompts="starter", reward=["lexical"], witness=[], steps=6, batch_size=8, max_new_tokens=6,
            learning_rate=0.02, retain=retain,
            rewards={"terms": {"refusal": 0, "similarity": 0, "counter_narrative": 0}},
        ),
        out,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("learn", [learn_by_preference, learn_dialogues, learn_by_rl])
def test_a_training_that_retains_leaves_the_base_less_far_on_other_text(
    tmp_path: Path, learn: Callable[[Path, RetainSettings], Run]
) -> None:
    """Measured on pieces that the training never had."""
    held_to = learn(tmp_path / "held", RETAIN.model_copy(update={"pieces": 64, "batch": 16, "coef": 20.0}))
    free = learn(tmp_path / "free", RetainSettings(coef=0.0))
    policy = load_policy(ModelSettings(**TINY))
    fresh = held_on(policy, tmp_path / "fresh", RETAIN.model_copy(update={"pieces": 24}), seed=7).pieces

    def distance(run: Run) -> float:
        adapted = load_policy(ModelSettings(**TINY))
        load_adapter(adapted, run.path)
        with torch.no_grad():
            return float(plain_kl(adapted, fresh))

    assert 0 < distance(held_to) < 0.6 * distance(free)
    # metrics.jsonl says what the trainer saw: nothing at first, and something later.
    noted = [line["retain_kl"] for line in held_to.read("metrics")]
    assert noted[-1] > 0
    assert all("retain_kl" not in line for line in free.read("metrics"))
    assert any(bool(t.any()) for n, t in load_file(held_to.adapter / "adapter_model.safetensors").items() if "B" in n)
