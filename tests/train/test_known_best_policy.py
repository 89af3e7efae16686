"""The whole loop on a problem small enough to be solved on paper: every answer listed, the best policy known.

A random model with eleven tokens gives answers of two. With a KL penalty of weight β the best policy is the reference
tilted by the reward, π*(y) ∝ ref(y)·exp(r(y)/β) (Rafailov et al. 2023, equation 4), and its value is β·log Z.
"""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rewardlm.config import ModelSettings, RlafSettings
from rewardlm.models.load import load_policy
from rewardlm.models.logprobs import score_rows
from rewardlm.models.lora import load_adapter
from rewardlm.train.rlaf import train

LETTERS = "abcdefgh"
BETA = 0.25


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A model folder, a prompt, and a judge that has an opinion of every letter and every pair."""
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("known")
    vocabulary = {token: number for number, token in enumerate([*LETTERS, "<end>", "?", "~"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="~"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<end>", unk_token="~")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    torch.manual_seed(5)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=16,
            tie_word_embeddings=False,
            eos_token_id=vocabulary["<end>"],
            bos_token_id=vocabulary["?"],
            pad_token_id=vocabulary["<end>"],
            initializer_range=0.25,
        )
    )
    model.save_pretrained(home / "model")
    tokenizer.save_pretrained(home / "model")
    (home / "prompt.txt").write_text("?\n")
    (home / "known_judge.py").write_text(
        "import random\n"
        "def badness(texts):\n"
        "    if any(len(t) > 4 for t in texts):  # the check of the sign\n"
        "        return [0.9 if 'stupid' in t or 'trash' in t or 'moron' in t else 0.1 for t in texts]\n"
        "    return [random.Random(t).random() for t in texts]\n"
    )
    return home


@pytest.fixture(autouse=True)
def _there(home, monkeypatch):
    monkeypatch.chdir(home)


def answers(end: int) -> list[list[int]]:
    """All answers of at most two tokens: the end token alone, and any other token before any."""
    others = [token for token in range(11) if token != end]
    return [[end], *([first, second] for first, second in itertools.product(others, range(11)))]


def distribution(policy) -> torch.Tensor:
    """P of every answer, by enumeration."""
    listed = answers(policy.tokenizer.eos_token_id)
    prompt = policy.chat.encode_prompt(prompts()[0])
    logprobs = score_rows(policy.causal_lm, [prompt] * len(listed), listed, 10**6)[0].double()
    mask = torch.arange(logprobs.shape[1])[None] < torch.tensor([len(answer) for answer in listed])[:, None]
    found = torch.where(mask, logprobs, 0.0).sum(1).exp()
    assert float(found.sum()) == pytest.approx(1, abs=1e-4)
    return found


def prompts():
    from rewardlm.data.prompts import load_prompts

    return [prompt.turns for prompt in load_prompts("prompt.txt").prompts]


def rewards(policy) -> torch.Tensor:
    """What each answer earns: 1 - badness of its text; an answer without text the set penalty."""
    texts = [policy.chat.decode(answer) for answer in answers(policy.tokenizer.eos_token_id)]
    return torch.tensor([1 - random.Random(text).random() if text.strip() else 0.0 for text in texts]).double()


def value(policy_p: torch.Tensor, reference_p: torch.Tensor, earned: torch.Tensor) -> float:
    """E[r] - β·KL(π ‖ ref), exactly."""
    return float((policy_p * (earned - BETA * (policy_p / reference_p).log())).sum())


@pytest.mark.parametrize(
    ("algorithm", "changes"),
    [
        ("ppo", {}),
        ("ppo", {"critic": "own", "learning_rate": 5e-3, "steps": 220}),
        ("grpo", {"samples": 16}),
        ("dr_grpo", {"samples": 16}),
        ("rloo", {"samples": 16}),
        ("dr_grpo", {"samples": 16, "learning_rate": 5e-3, "steps": 200, "kl": {"penalty": "full", "coef": BETA}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value)) or "default",
)
def test_training_ends_near_the_best_policy(home, tmp_path, algorithm, changes):
    chosen = {
        "model": str(home / "model"),
        "dtype": "float32",
        "device": "cpu",
        "prompts": "prompt.txt",
        "reward": ["known_judge:badness"],
        "witness": [],
        "algorithm": algorithm,
        "steps": 150,
        # Fewer answers a step leave so much noise that the bound depends on the seed.
        "batch_size": 256,
        "max_new_tokens": 2,
        "ppo_epochs": 2,
        "minibatches": 1,
        "learning_rate": 1e-2,
        "value_learning_rate": 2e-2,
        "gae_lambda": 1.0,
        "kl": {"coef": BETA},
        "lora": {"r": 8, "alpha": 16},
        "rewards": {"empty": 0.0},
        "checkpoint_every": 1000,
        "samples_every": 1000,
        **changes,
    }
    train(RlafSettings(**chosen), tmp_path / "run")
    policy = load_policy(ModelSettings(model=str(home / "model"), dtype="float32", device="cpu"))
    reference_p, earned = distribution(policy), rewards(policy)
    load_adapter(policy, tmp_path / "run" / "adapter")
    learned_p = distribution(policy)

    partition = float((reference_p * (earned / BETA).exp()).sum())
    best_p = reference_p * (earned / BETA).exp() / partition
    start, found = value(reference_p, reference_p, earned), value(learned_p, reference_p, earned)
    best = value(best_p, reference_p, earned)
    assert best == pytest.approx(BETA * math.log(partition), abs=1e-3)
    # Of what there is to gain, nearly all; and it is that policy, not another one of like value.
    assert found <= best + 1e-6
    assert (found - start) / (best - start) > 0.9
    assert float((learned_p - best_p).abs().sum()) / 2 < 0.2 < float((reference_p - best_p).abs().sum()) / 2
