"""What ``kl.coef`` does where the reward says nothing: a judge that finds every answer alike, and a policy off its
reference.

Then the KL is all that pulls, and its gradient must be the coefficient times something that doesn't depend on it: none
at 0, four hundred times as large at 0.2 as at 0.0005.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rewardlm.config import RlafSettings
from rewardlm.models.lora import adapter_parameters
from rewardlm.training import rlaf
from rewardlm.training.learner import make_learner
from rewardlm.training.rlaf import train

COEFFICIENTS = (0.0005, 0.01, 0.2)
OWN = "kl_estimators:centred"


@pytest.fixture(autouse=True)
def _off_its_reference(tmp_path, monkeypatch):
    """A judge with the right sign and one opinion; an estimator that knows nothing of the KL; an adapter not zero."""
    torch.set_num_threads(1)
    (tmp_path / "kl_judges.py").write_text(
        "def alike(texts):\n"
        "    if texts[-1].endswith('taxes.'):  # the check of the sign\n"
        "        return [0.9, 0.9, 0.9, 0.1, 0.1, 0.1]\n"
        "    return [0.3] * len(texts)\n"
    )
    (tmp_path / "kl_estimators.py").write_text(
        "def centred(f):\n    return (f.rewards - f.rewards.double().mean())[:, None] * f.mask, None\n"
    )
    monkeypatch.chdir(tmp_path)

    def moved(policy, chosen):
        learner = make_learner(policy, chosen)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in adapter_parameters(policy.model):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        return learner

    monkeypatch.setattr(rlaf, "make_learner", moved)


def gradient_norm(out: Path, coef: float, algorithm: str, **changes) -> float:
    chosen = {
        "model": "tiny",
        "device": "cpu",
        "dtype": "float32",
        "prompts": "starter",
        "reward": ["kl_judges:alike"],
        "witness": [],
        "algorithm": algorithm,
        "batch_size": 12,
        "samples": 3,  # a mean of three equal numbers may be another number, in float32
        "max_new_tokens": 6,
        "steps": 1,
        "learning_rate": 1e-12,  # every update of the step is of one policy
        **changes,
    }
    chosen["kl"] = {"coef": coef, **changes.get("kl", {})}
    with pytest.warns(UserWarning, match="constant reward"):
        [line] = train(RlafSettings(**chosen), out).read("metrics")
    assert line["kl"] > 0.05
    assert line["reward_std"] < 1e-6
    return line["grad_norm"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "changes"),
    [
        ("grpo", {}),
        ("dr_grpo", {}),
        ("rloo", {}),
        (OWN, {}),
        *[
            (algorithm, {"kl": {"penalty": penalty}})
            for algorithm, penalties in {
                "ppo": ("k3", "full"),
                "grpo": ("k1", "full"),
                "dr_grpo": ("k1", "full"),
                "rloo": ("k3", "full"),
            }.items()
            for penalty in penalties
        ],
    ],
    ids=lambda value: value if isinstance(value, str) else value["kl"]["penalty"] if value else "default",
)
def test_where_all_rewards_are_equal_the_gradient_is_proportional_to_the_coefficient(tmp_path, algorithm, changes):
    assert gradient_norm(tmp_path / "none", 0.0, algorithm, **changes) == 0
    norms = [gradient_norm(tmp_path / str(coef), coef, algorithm, **changes) for coef in COEFFICIENTS]
    each = [norm / coef for norm, coef in zip(norms, COEFFICIENTS, strict=True)]
    assert each[0] > 0.01
    assert each == pytest.approx([each[0]] * len(each), rel=2e-3)


@pytest.mark.slow
def test_ppos_whitening_leaves_the_size_to_the_batch(tmp_path):
    """PPO divides all advantages of a batch by their deviation: where only the KL has any, its size cancels.

    That is one factor for the whole batch, so reward and KL keep their proportion; a group's own factor would not.
    """
    assert gradient_norm(tmp_path / "none", 0.0, "ppo") == 0
    norms = [gradient_norm(tmp_path / str(coef), coef, "ppo") for coef in COEFFICIENTS]
    assert norms == pytest.approx([norms[0]] * len(norms), rel=0.02)
