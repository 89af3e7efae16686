"""One batch of PPO, two epochs of it, against TRL 1.12's PPOTrainer: its rollouts through our code, by gradient.

The TRL that the project runs on has no PPOTrainer any more, so this runs only where $REWARDLM_TRL_PPO names a folder
with 1.12 (see README.md beside this file). TRL samples, scores and trains in a process of its own, with nothing of it
replaced but the reward model; what its ``train`` holds at each optimizer step is written down. The same answers then go
through ours.

What differs, and what is done about it here:

- TRL gives the score of an answer that ended one position after its end token, where it still has a value, V(end); ours
  gives it at the end token, whose next state is terminal. The two are equal for answers that are cut off, and for
  gamma = lambda = 1. For others the difference is known exactly, and a test states it.
- For the same reason TRL's critic learns V(end) too, in the same mean. Whole value losses are compared where no answer
  ends; elsewhere ours is given TRL's tokens.
- TRL's critic is a model of its own, ours a head on the policy's normalised, detached state. TRL's is made of the same
  weights here, frozen below its head, so that the first step's values and gradients can be compared; after that the
  policy has moved on and TRL's critic has not, and ours is given TRL's values.
- TRL divides logits by temperature + 1e-7, which at temperature 1 is below float32's rounding of them.
- TRL's padding must be another token than its end, or the end token is never learnt from: here it is <|endoftext|>.
  Ours goes by lengths.
- TRL can take a penalty off answers that don't end (missing_eos_penalty, None here); ours leaves that to the
  reward. TRL does not clip gradients in PPO; ours is given a limit that is never reached.
- With several microbatches TRL averages their means, ours is the mean over the minibatch: there is one here.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rewardlm.config import KlSettings, LoraSettings, ModelSettings, RlafSettings
from rewardlm.models.load import Policy, load_policy
from rewardlm.models.logprobs import hidden_rows, score_rows
from rewardlm.models.lora import adapter_parameters, add_lora, load_adapter, reference, save_adapter
from rewardlm.training.advantages import Feedback, gae, ppo, token_rewards
from rewardlm.training.learner import Batch, KlController, Learner, update
from rewardlm.training.objectives import kl_k1, masked, value_loss, whiten
from rewardlm.training.rollouts import Rollouts
from rewardlm.training.value import ValueHead

TRL = Path(os.environ.get("REWARDLM_TRL_PPO") or "unset").absolute()
pytestmark = [
    pytest.mark.skipif(
        not any(TRL.glob("trl-1.12.*.dist-info")),
        reason="set REWARDLM_TRL_PPO to a folder that holds trl 1.12 (tests/peers/README.md says how)",
    ),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing. is deprecated:FutureWarning"),
]

ANSWERS, RESPONSE_TOKENS = 8, 12
PAD, PAD_ID = "<|endoftext|>", 0
KL_COEF, CLIP, VALUE_CLIP = 0.1, 0.2, 0.05
# What TRL is run with: whether answers may end, gamma, lambda.
RUNS: dict[str, tuple[bool, float, float]] = {
    "cut off": (False, 0.97, 0.9),
    "ended, undiscounted": (True, 1.0, 1.0),
    "ended, discounted": (True, 0.97, 0.9),
}


# TRL's side, in a process of its own --------------------------------------------------------------------------------


class _Backbone(nn.Module):
    """States that hold one number: a sum of something arbitrary about each token so far."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPast

        told = ((17 * input_ids) % 101 / 50 - 1) * attention_mask
        return BaseModelOutputWithPast(hidden_states=(told.cumsum(1)[..., None].float(),))


class _Judge(nn.Module):
    """A reward model in the shape that TRL asks for."""

    base_model_prefix = "model"

    def __init__(self) -> None:
        super().__init__()
        self.model = _Backbone()
        self.score = nn.Identity()


def run_trl(folder: Path) -> None:
    """Train with TRL once for each of RUNS; write what it held at each optimizer step to ``folder``."""
    import trl
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    assert trl.__version__.startswith("1.12."), trl.__version__
    torch.set_num_threads(1)

    def base() -> Any:
        return AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)

    class Noted(torch.optim.SGD):
        """Writes down the local variables of TRL's ``train`` before each step."""

        steps: int = 0
        run: str = ""
        names: dict[str, nn.Parameter]

        def step(self, closure: Any = None) -> Any:
            frame = sys._getframe()
            while (frame.f_code.co_name, frame.f_code.co_filename) != ("train", ppo_trainer.__file__):
                assert frame.f_back is not None
                frame = frame.f_back
            held = frame.f_locals
            tensors = {
                name: held[name]
                for name in (
                    *("queries", "responses", "logprobs", "ref_logprobs", "values", "scores", "advantages", "returns"),
                    *("padding_mask", "padding_mask_p1", "vpred", "pg_loss", "vf_loss", "pg_losses", "pg_losses2"),
                    *("vf_losses1", "vf_losses2"),
                )
            }
            tensors["unwhitened"] = torch.stack(held["advantages_reversed"][::-1], 1)
            tensors["rows"] = torch.tensor(held["micro_batch_inds"])
            for name, parameter in self.names.items():
                tensors[f"weight {name}"], tensors[f"gradient {name}"] = parameter, parameter.grad
            self.steps += 1
            save_file(
                {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()},
                str(folder / f"{self.run}-{self.steps}.safetensors"),
            )
            return super().step(closure)

    for run, (ends, gamma, lam) in RUNS.items():
        policy = PeftModel.from_pretrained(base(), folder / "adapter", is_trainable=True)
        critic = AutoModelForSequenceClassification.from_pretrained(folder / "base", num_labels=1, dtype=torch.float32)
        critic.model = PeftModel.from_pretrained(base(), folder / "adapter").merge_and_unload().model
        critic.requires_grad_(False)
        critic.score.weight = nn.Parameter(load_file(folder / "score.safetensors")["weight"])
        tokenizer = AutoTokenizer.from_pretrained(folder / "base")
        tokenizer.pad_token, tokenizer.padding_side = PAD, "left"
        policy.generation_config.pad_token_id = tokenizer.pad_token_id
        adapter = {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}
        optimizer = Noted([{"params": adapter.values(), "lr": 0.05}, {"params": [critic.score.weight], "lr": 0.05}])
        optimizer.run, optimizer.names = run, {**adapter, "score.weight": critic.score.weight}
        trainer = PPOTrainer(
            PPOConfig(
                output_dir=str(folder / "trl"),
                per_device_train_batch_size=ANSWERS,
                gradient_accumulation_steps=1,
                num_mini_batches=1,
                num_ppo_epochs=2,
                total_episodes=ANSWERS,
                response_length=RESPONSE_TOKENS,
                stop_token="eos" if ends else None,
                temperature=1.0,
                kl_estimator="k1",
                kl_coef=KL_COEF,
                cliprange=CLIP,
                cliprange_value=VALUE_CLIP,
                vf_coef=1.0,  # ours has none: the critic has an optimizer's group of its own
                gamma=gamma,
                lam=lam,
                whiten_rewards=False,
                missing_eos_penalty=None,
                num_sample_generations=0,
                bf16=False,
                gradient_checkpointing=False,
                use_cpu=True,
                disable_tqdm=True,
                save_strategy="no",
                report_to="none",
                seed=1,
            ),
            processing_class=tokenizer,
            model=policy,
            ref_model=None,  # the base, with the adapter off
            reward_model=_Judge(),
            train_dataset=Dataset.from_dict({"input_ids": json.loads((folder / "prompts.json").read_text())}),
            value_model=critic,
            optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)),
        )
        trainer.train()
        assert optimizer.steps == 2


# Ours ---------------------------------------------------------------------------------------------------------------


@dataclass
class Step:
    """What TRL held at one optimizer step, and the same answers as our rollouts."""

    held: dict[str, Tensor]
    rollouts: Rollouts
    mask: Tensor
    gamma: float
    lam: float

    @property
    def ended(self) -> Tensor:
        """Bool[B]: TRL has a position after the answer's last token."""
        return ~self.held["padding_mask_p1"].eq(self.held["padding_mask"]).all(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, an adapter that isn't zero, a value head, prompts; and what TRL did with them."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("ppo")
    generator = torch.Generator().manual_seed(0)
    policy = load_policy(ModelSettings(model="tiny", device="cpu", dtype="float32"))
    assert policy.tokenizer.convert_tokens_to_ids(PAD) == PAD_ID
    with torch.no_grad():
        # An end token that some states make likely, so that some answers end and others are cut off.
        end = policy.model.get_input_embeddings().weight[policy.tokenizer.eos_token_id]
        end.copy_(0.7 * torch.randn(end.shape, generator=generator))
    policy.model.save_pretrained(folder / "base")
    policy.tokenizer.save_pretrained(folder / "base")
    add_lora(policy, LoraSettings(r=4), seed=0)
    with torch.no_grad():
        for parameter in adapter_parameters(policy.model):
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    save_adapter(policy.model, folder / "adapter")
    save_file({"weight": 0.05 * torch.randn(1, 64, generator=generator)}, str(folder / "score.safetensors"))
    prompts = [torch.randint(3, 1500, (n,), generator=generator).tolist() for n in range(2, 2 + ANSWERS)]
    (folder / "prompts.json").write_text(json.dumps(prompts))
    first = os.pathsep.join([str(TRL), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, __file__, str(folder)],
        env={**os.environ, "PYTHONPATH": first, "TRL_EXPERIMENTAL_SILENCE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture
def policy(folder: Path) -> Policy:
    loaded = load_policy(ModelSettings(model=str(folder / "base"), device="cpu", dtype="float32"))
    load_adapter(loaded, folder / "adapter", trainable=True)
    return loaded


@pytest.fixture
def head(folder: Path) -> ValueHead:
    made = ValueHead(64)
    with torch.no_grad():
        made.linear.weight.copy_(load_file(folder / "score.safetensors")["weight"])
    return made


def taken(folder: Path, run: str, number: int) -> Step:
    held = load_file(folder / f"{run}-{number}.safetensors")
    mask = ~held["padding_mask"]
    assert not held["responses"][mask].eq(PAD_ID).any()  # TRL would not see such a token

    def unpadded(values: Tensor) -> Tensor:
        return torch.where(mask, values, math.nan)  # what is padding must not count, whatever it holds

    rollouts = Rollouts(
        prompts=[tuple(row[row != PAD_ID].tolist()) for row in held["queries"]],
        responses=[row[real_].tolist() for row, real_ in zip(held["responses"], mask, strict=True)],
        response_mask=mask,
        logprobs=unpadded(held["logprobs"]),
        sampling_logprobs=unpadded(held["logprobs"]),
        ref_logprobs=unpadded(held["ref_logprobs"]),
        entropy=torch.zeros_like(held["logprobs"]),
        kl_full=None,
        values=unpadded(held["values"]),
        ref_hidden=None,
        rewards=held["scores"],
        group=torch.arange(ANSWERS),
        texts=[""] * ANSWERS,
        judged=None,
    )
    _, gamma, lam = RUNS[run]
    return Step(held, rollouts, mask, gamma, lam)


def feedback(step: Step) -> Feedback:
    rollouts = step.rollouts
    return Feedback(
        rewards=rollouts.rewards,
        kl=kl_k1(rollouts.logprobs, rollouts.ref_logprobs),
        mask=rollouts.response_mask,
        group=rollouts.group,
        values=rollouts.values,
        kl_coef=KL_COEF,
        gamma=step.gamma,
        gae_lambda=step.lam,
    )


def our_update(
    policy: Policy, head: ValueHead, step: Step, advantages: Tensor, returns: Tensor
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Our update of the answers from the weights that TRL had at this step: its losses, the adapter's gradients."""
    adapter = {name: parameter for name, parameter in policy.model.named_parameters() if parameter.requires_grad}
    with torch.no_grad():
        for name, parameter in adapter.items():
            parameter.copy_(step.held[f"weight {name}"])
    optimizer = torch.optim.SGD([*adapter.values(), *head.parameters()], lr=0.0)
    settings = RlafSettings(
        model="tiny",
        device="cpu",
        dtype="float32",
        algorithm="ppo",
        kl=KlSettings(penalty="k1", coef=KL_COEF),
        clip_range=CLIP,
        value_clip_range=VALUE_CLIP,
        ppo_epochs=2,  # twice from the same weights: a step's only update would take itself for the old policy
        minibatches=1,
        max_grad_norm=1e9,
    )
    learner = Learner(policy, head, optimizer, KlController(settings.kl))
    losses = update(learner, settings, Batch(step.rollouts, advantages, returns), step=0)
    return losses, {name: parameter.grad for name, parameter in adapter.items()}


def assert_gradients_are_trls(step: Step, found: dict[str, Tensor]) -> None:
    expected = {name: step.held[f"gradient {name}"] for name in found}
    assert {f"gradient {name}" for name in found} == {
        name for name in step.held if name.startswith("gradient ") and "score" not in name
    }
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    assert scale > 0
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name], gradient, atol=1e-4 * scale, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("run", RUNS)
def test_log_probabilities_reference_and_values_are_trls(folder, policy, head, run):
    step = taken(folder, run, 1)
    rollouts, held, mask = step.rollouts, step.held, step.mask
    logprobs, _ = score_rows(policy.causal_lm, rollouts.prompts, rollouts.responses, 10**6)
    with reference(policy):
        ref_logprobs, _ = score_rows(policy.causal_lm, rollouts.prompts, rollouts.responses, 10**6)
    with torch.no_grad():
        rows = list(range(ANSWERS))
        values = head(hidden_rows(policy.causal_lm, rollouts.prompts, rollouts.responses, rows))
    for found, expected in (
        (logprobs[mask], held["logprobs"][mask]),
        (ref_logprobs[mask], held["ref_logprobs"][mask]),
        (values, held["values"][mask]),
    ):
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    assert int(step.ended.sum()) in (range(2, ANSWERS - 1) if RUNS[run][0] else [0])


@pytest.mark.parametrize("run", ["cut off", "ended, undiscounted"])
def test_advantages_are_trls(folder, run):
    step = taken(folder, run, 1)
    advantages, returns = ppo(feedback(step))
    torch.testing.assert_close(advantages, step.held["advantages"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(returns[step.mask], step.held["returns"][step.mask], atol=1e-5, rtol=1e-5)


def test_trl_gives_the_score_of_an_answer_that_ended_one_position_later(folder):
    step = taken(folder, "ended, discounted", 1)
    held, rollouts = step.held, step.rollouts
    # TRL's recursion is ours over one position more, where it puts the score; the rest is whitened as ours is.
    longer = ~held["padding_mask_p1"]
    shaped = token_rewards(rollouts.rewards, masked(feedback(step).kl, step.mask), longer, KL_COEF)
    advantages, returns = gae(shaped, held["values"], longer, step.gamma, step.lam)
    torch.testing.assert_close(advantages[longer], held["unwhitened"][longer], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(returns[longer], held["returns"][longer], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(whiten(advantages, step.mask), held["advantages"], atol=1e-5, rtol=1e-5)
    # So much of the score is replaced by what the critic expects after the end, and it fades backwards as GAE does.
    shaped = token_rewards(rollouts.rewards, feedback(step).kl, step.mask, KL_COEF)
    ours, _ = gae(shaped, rollouts.values, step.mask, step.gamma, step.lam)
    last = step.mask.sum(1) - 1
    after = held["values"].gather(1, (last + 1).clamp(max=RESPONSE_TOKENS - 1)[:, None])[:, 0]
    decay = step.gamma * step.lam
    at_the_end = rollouts.rewards - (step.gamma * (1 - step.lam) * after + decay * rollouts.rewards)
    distance = last[:, None] - torch.arange(RESPONSE_TOKENS)
    expected = torch.where(step.ended, at_the_end, 0.0)[:, None] * decay**distance
    torch.testing.assert_close((ours - held["unwhitened"])[step.mask], expected[step.mask], atol=1e-5, rtol=1e-5)
    assert float(expected[step.mask].abs().max()) > 0.05


@pytest.mark.parametrize("run", RUNS)
def test_the_first_updates_policy_loss_and_gradient_are_trls(folder, policy, head, run):
    step = taken(folder, run, 1)
    advantages, returns = ppo(feedback(step))
    if run == "ended, discounted":
        advantages = torch.where(step.mask, step.held["advantages"], math.nan)
    losses, gradients = our_update(policy, head, step, advantages, returns)
    assert losses["policy_loss"] == pytest.approx(float(step.held["pg_loss"]), rel=1e-4, abs=1e-6)
    assert losses["clip_fraction"] == 0
    assert_gradients_are_trls(step, gradients)


@pytest.mark.parametrize("run", RUNS)
def test_the_second_epoch_is_trls_with_ratios_clipped(folder, policy, head, run):
    step = taken(folder, run, 2)
    advantages, returns = ppo(feedback(step))
    if run == "ended, discounted":
        advantages = torch.where(step.mask, step.held["advantages"], math.nan)
    losses, gradients = our_update(policy, head, step, advantages, returns)
    assert losses["policy_loss"] == pytest.approx(float(step.held["pg_loss"]), rel=1e-4, abs=1e-5)
    bitten = (step.held["pg_losses2"] > step.held["pg_losses"])[step.mask[step.held["rows"]]]
    assert losses["clip_fraction"] == pytest.approx(float(bitten.float().mean()), abs=1e-6)
    assert bitten.any()
    assert_gradients_are_trls(step, gradients)


def test_the_value_loss_and_the_heads_gradient_are_trls_where_no_answer_ends(folder, policy, head):
    step = taken(folder, "cut off", 1)
    losses, _ = our_update(policy, head, step, *ppo(feedback(step)))
    assert losses["value_loss"] == pytest.approx(float(step.held["vf_loss"]), rel=1e-4)
    torch.testing.assert_close(head.linear.weight.grad, step.held["gradient score.weight"], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("run", RUNS)
def test_the_clipped_value_loss_is_trls_on_its_own_values(folder, run):
    held = taken(folder, run, 2).held
    mask, rows = ~held["padding_mask_p1"], held["rows"]
    found = value_loss(
        held["vpred"][mask[rows]],
        held["values"][rows][mask[rows]],
        held["returns"][rows][mask[rows]],
        VALUE_CLIP,
        int(mask.sum()),
    )
    assert float(found) == pytest.approx(float(held["vf_loss"]), rel=1e-5)
    assert (held["vf_losses2"] > held["vf_losses1"])[mask[rows]].any()


if __name__ == "__main__":
    run_trl(Path(sys.argv[1]))
