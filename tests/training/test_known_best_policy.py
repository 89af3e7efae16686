"""The whole loop on a problem small enough to be solved on paper: every answer listed, the best policy known.

A random model with eleven tokens gives answers of two. With a KL penalty of weight β the best policy is the reference
tilted by the reward, π*(y) ∝ ref(y)·exp(r(y)/β) (Rafailov et al. 2023, equation 4), and its value is β·log Z.

GRPO divides an answer's reward by its group's deviation σ, so that its penalty weighs β·σ in units of reward.
"""

from __future__ import annotations

import itertools
import math
import os
import random
from pathlib import Path

import pytest
import torch
from letters import save_model

from rewardlm.config import ModelSettings, RlafSettings
from rewardlm.models.load import load_policy
from rewardlm.models.logprobs import score_rows
from rewardlm.models.lora import load_adapter
from rewardlm.training.rlaf import train
from rewardlm.types import Message

pytestmark = pytest.mark.slow
# Trainings of a quarter of an hour, all in all. `make test` has one of them.
MORE = pytest.mark.skipif("REWARDLM_PROVE" not in os.environ, reason="takes minutes: make prove-policy")

BETA = 0.25
BANDIT_BETA = 0.2


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A model folder, a prompt, and a judge that has an opinion of every letter and every pair."""
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("known")
    save_model(home / "model", positions=16)
    (home / "prompt.txt").write_text("?\n")
    (home / "known_judge.py").write_text(
        "import random\n"
        "def badness(texts):\n"
        "    if any(len(t) > 4 for t in texts):  # the check of the sign\n"
        "        return [0.9 if 'stupid' in t or 'trash' in t or 'moron' in t else 0.1 for t in texts]\n"
        "    return [random.Random(t).random() for t in texts]\n"
        "def not_a(texts):\n"
        "    if any(len(t) > 4 for t in texts):\n"
        "        return badness(texts)\n"
        "    return [float(t != 'a') for t in texts]\n"
    )
    return home


@pytest.fixture(scope="module")
def bandit(home) -> Path:
    """The same model, but it says "a" or "b", at even odds."""
    policy = load_policy(ModelSettings(model=str(home / "model"), dtype="float32", device="cpu"))
    model = policy.causal_lm
    asked = torch.tensor([encoded_prompt(policy)])
    with torch.no_grad():
        state = model(input_ids=asked, output_hidden_states=True).hidden_states[-1][0, -1]
        along = state / state.norm()
        across = torch.randn(len(state), generator=torch.Generator().manual_seed(0))
        across -= (across @ along) * along
        # The two lie to both sides of the state, at a right angle to it; all others opposite, at odds of e^-20.
        model.lm_head.weight.copy_((-20 * along / state.norm()).expand_as(model.lm_head.weight))
        model.lm_head.weight[0], model.lm_head.weight[1] = across / across.norm(), -across / across.norm()
    model.save_pretrained(home / "bandit")
    policy.tokenizer.save_pretrained(home / "bandit")
    return home / "bandit"


@pytest.fixture(autouse=True)
def _there(home, monkeypatch):
    monkeypatch.chdir(home)


def encoded_prompt(policy) -> list[int]:
    return list(policy.chat.encode_prompt([Message("user", "?")]))


def answers(end: int) -> list[list[int]]:
    """All answers of at most two tokens: the end token alone, and any other token before any."""
    others = [token for token in range(11) if token != end]
    return [[end], *([first, second] for first, second in itertools.product(others, range(11)))]


def distribution(policy) -> torch.Tensor:
    """P of every answer, by enumeration."""
    listed = answers(policy.tokenizer.eos_token_id)
    prompt = encoded_prompt(policy)
    logprobs = score_rows(policy.causal_lm, [prompt] * len(listed), listed, 10**6)[0].double()
    mask = torch.arange(logprobs.shape[1])[None] < torch.tensor([len(answer) for answer in listed])[:, None]
    found = torch.where(mask, logprobs, 0.0).sum(1).exp()
    assert float(found.sum()) == pytest.approx(1, abs=1e-4)
    return found


def rewards(policy) -> torch.Tensor:
    """What each answer earns: 1 - badness of its text; an answer without text the set penalty."""
    texts = [policy.chat.decode(answer) for answer in answers(policy.tokenizer.eos_token_id)]
    return torch.tensor([1 - random.Random(text).random() if text.strip() else 0.0 for text in texts]).double()


def value(policy_p: torch.Tensor, reference_p: torch.Tensor, earned: torch.Tensor, beta: float) -> float:
    """E[r] - β·KL(π ‖ ref), exactly."""
    return float((policy_p * (earned - beta * (policy_p / reference_p).log())).sum())


def tilted(reference_p: torch.Tensor, earned: torch.Tensor, beta: float) -> torch.Tensor:
    return (reference_p.log() + earned / beta).softmax(0)


def weight_in_rewards(reference_p: torch.Tensor, earned: torch.Tensor, coef: float, samples: int) -> float:
    """GRPO's β·σ, where σ is the deviation of rewards under the very policy that is best at that weight.

    The group's mean has the answer itself in it, which makes its advantage smaller by (n - 1) / n.
    """
    beta = coef
    for _ in range(200):
        best_p = tilted(reference_p, earned, beta)
        mean = float((best_p * earned).sum())
        beta = coef * math.sqrt(float((best_p * (earned - mean) ** 2).sum())) * samples / (samples - 1)
    return beta


def chosen_settings(model: Path, algorithm: str, **changes) -> RlafSettings:
    return RlafSettings(
        **{
            "model": str(model),
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
            "lora": {"r": 8, "alpha": 16},
            "rewards": {"empty": 0.0},
            "checkpoint_every": 1000,
            "samples_every": 1000,
            **changes,
        }
    )


@MORE
@pytest.mark.parametrize(
    ("algorithm", "changes"),
    [
        ("ppo", {}),
        ("ppo", {"critic": "own", "learning_rate": 5e-3, "steps": 220}),
        ("grpo", {"samples": 16, "learning_rate": 5e-3, "steps": 200, "kl": {"coef": 2.0}}),
        ("dr_grpo", {"samples": 16}),
        ("rloo", {"samples": 16}),
        ("dr_grpo", {"samples": 16, "loss": "cispo"}),
        (
            "dr_grpo",
            {"samples": 16, "ratio": "sequence", "loss_type": "dr_grpo", "learning_rate": 5e-3, "steps": 220},
        ),
        ("dr_grpo", {"samples": 16, "schedule": {"kind": "cosine", "warmup_steps": 5}}),
        ("dr_grpo", {"samples": 16, "kl": {"penalty": "k1", "coef": BETA}}),
        ("dr_grpo", {"samples": 16, "learning_rate": 5e-3, "steps": 200, "kl": {"penalty": "full", "coef": BETA}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value)) or "default",
)
def test_training_ends_near_the_best_policy(home, tmp_path, algorithm, changes):
    chosen = chosen_settings(home / "model", algorithm, **{"kl": {"coef": BETA}, **changes})
    train(chosen, tmp_path / "run")
    policy = load_policy(ModelSettings(model=str(home / "model"), dtype="float32", device="cpu"))
    reference_p, earned = distribution(policy), rewards(policy)
    load_adapter(policy, tmp_path / "run" / "adapter")
    learned_p = distribution(policy)

    beta = weight_in_rewards(reference_p, earned, chosen.kl.coef, 16) if algorithm == "grpo" else BETA
    partition = float((reference_p * (earned / beta).exp()).sum())
    best_p = tilted(reference_p, earned, beta)
    start, found = value(reference_p, reference_p, earned, beta), value(learned_p, reference_p, earned, beta)
    best = value(best_p, reference_p, earned, beta)
    assert best == pytest.approx(beta * math.log(partition), abs=1e-3)
    # Of what there is to gain, nearly all; and it is that policy, not another one of like value.
    assert found <= best + 1e-6
    assert (found - start) / (best - start) > 0.9
    assert float((learned_p - best_p).abs().sum()) / 2 < 0.2 < float((reference_p - best_p).abs().sum()) / 2


# A reward of 1 against 0 at even odds: the best odds are e^(1/β), P(bad) = 0.0067. In GRPO's groups of two that differ
# the advantages are ±1/√2, whatever the rewards, so there it is e^(1/(√2·β)), P(bad) = 0.028.
@pytest.mark.parametrize(
    ("algorithm", "changes", "best"),
    [
        pytest.param("ppo", {}, 1 / BANDIT_BETA, marks=MORE),
        pytest.param("dr_grpo", {"samples": 16}, 1 / BANDIT_BETA, marks=MORE),
        pytest.param("dr_grpo", {"samples": 16, "kl": {"penalty": "full"}}, 1 / BANDIT_BETA, marks=MORE),
        pytest.param("rloo", {"samples": 16}, 1 / BANDIT_BETA, marks=MORE),
        pytest.param("rloo", {"samples": 16, "kl": {"penalty": "k3"}}, 1 / BANDIT_BETA, marks=MORE),
        ("grpo", {"samples": 2}, 1 / BANDIT_BETA / math.sqrt(2)),
        pytest.param("grpo", {"samples": 2, "kl": {"penalty": "k1"}}, 1 / BANDIT_BETA / math.sqrt(2), marks=MORE),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_the_best_odds_of_a_bandit_are_found(bandit, tmp_path, algorithm, changes, best):
    kl = {"coef": BANDIT_BETA, **changes.get("kl", {})}
    run = train(
        chosen_settings(
            bandit,
            algorithm,
            **{**changes, "kl": kl, "reward": ["known_judge:not_a"], "max_new_tokens": 1, "learning_rate": 5e-3},
        ),
        tmp_path / "run",
    )
    policy = load_policy(ModelSettings(model=str(bandit), dtype="float32", device="cpu"))
    asked = torch.tensor([encoded_prompt(policy)])

    def log_odds() -> float:
        with torch.no_grad():
            found = policy.causal_lm(input_ids=asked).logits[0, -1].double().log_softmax(-1)
        assert float(found[:2].exp().sum()) == pytest.approx(1, abs=1e-4)
        return float(found[0] - found[1])

    assert log_odds() == pytest.approx(0, abs=1e-4)
    load_adapter(policy, run.path / "adapter")
    assert log_odds() == pytest.approx(best, abs=0.7)
