"""TRL's DPOTrainer and KTOTrainer as preference training uses them: on tokens that we sampled, on log-probabilities of
the reference that are known beforehand and, where possible, by RL's pass in the place of TRL's.

The losses are TRL's own. Of the model they ask one thing, how likely each answer is, and ``our_pass`` answers that: no
padding, a prompt once for both of its answers, and the head on answers alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from trl import DPOTrainer, KTOTrainer
from trl.trainer.utils import FusedCausalLMOutput

from rewardlm.errors import ModelError
from rewardlm.models.budget import ran_out
from rewardlm.models.logprobs import forward_rows
from rewardlm.training.sft_pass import rows_of
from rewardlm.training.trl_parts import OurOrder

# What TRL calls the copy of an adapter that it makes for the reference; ours is asked beforehand.
_THEIR_REFERENCE = "ref"
# A step's line in metrics.jsonl, by TRL's names. Its rewards are beta times the log-ratio of policy and reference.
PAIR_METRICS = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "rewards/chosen": "implicit_reward_chosen",
    "rewards/rejected": "implicit_reward_rejected",
    "rewards/margins": "implicit_reward_margin",
    "rewards/accuracies": "pair_accuracy",
    "logps/chosen": "logprob_chosen",
    "logps/rejected": "logprob_rejected",
    "entropy": "entropy",
    "kl": "kl_estimate",
}


class _OnOurRows(OurOrder):
    """Rows hold tokens already, and what the reference says of them."""

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def reference_is_known(self) -> None:
        """Take what the reference says from the rows, and let go of the copy that TRL made to ask it."""
        self.precompute_ref_logps = True
        model = self.model
        if _THEIR_REFERENCE in model.peft_config:
            model.delete_adapter(_THEIR_REFERENCE)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        try:
            loss: Tensor = super().training_step(*args, **kwargs)
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            raise ModelError(
                f"out of memory with micro_batch_size {self.args.per_device_train_batch_size}: train with "
                "gradient_checkpointing=true, or lower it in another --out, which takes this run's answers by "
                "--answers; or begin anew with shorter answers (--max-new-tokens) or less to load (--dtype bfloat16, "
                "--load 4bit)"
            ) from error
        return loss


class PairTrainer(_OnOurRows, DPOTrainer):  # type: ignore[misc]
    """Rows of ``prompt_ids``, ``chosen_ids``, ``rejected_ids``, ``ref_chosen_logps`` and ``ref_rejected_logps``."""


class AnswerTrainer(_OnOurRows, KTOTrainer):  # type: ignore[misc]
    """Rows of ``prompt_ids``, ``completion_ids``, ``label`` and ``ref_logps``; for the estimate of the KL, each has
    another row's answer too: ``KL_completion_ids`` and ``ref_KL_logps``.
    """


@contextmanager
def our_pass(causal_lm: Any, *, fast: bool) -> Iterator[None]:
    """Inside, TRL's question to the model is answered by RL's pass if ``fast``; TRL changed ``causal_lm`` to ask it.
    Afterwards ``causal_lm`` is as it was before TRL.
    """
    theirs = causal_lm.forward

    def forward(
        *args: Any,
        fused_lm_head: bool = False,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Int[Tensor, "B T"] | None = None,
        labels: Int[Tensor, "B T"] | None = None,
        **more: Any,
    ) -> Any:
        if not fused_lm_head or input_ids is None or labels is None:
            return theirs(*args, input_ids=input_ids, attention_mask=attention_mask, labels=labels, **more)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        rows = rows_of({"input_ids": input_ids, "labels": labels, "attention_mask": mask})
        stats = forward_rows(causal_lm, rows.prompts, rows.answers, range(len(rows.prompts)))
        labelled = labels[:, 1:] != -100

        def placed(values: Tensor) -> Tensor:
            # Row after row, as the tokens stand in ``stats``.
            return values.new_zeros(labelled.shape).masked_scatter(labelled, values)

        logprobs = placed(stats.logprobs)
        return FusedCausalLMOutput(
            loss=-logprobs.sum() / labelled.sum(),
            log_probs=logprobs,
            entropy=placed(stats.entropy.detach()),
            is_top1=placed(stats.likeliest),
            mean_logits=torch.zeros_like(logprobs),  # only for TRL's log, which we don't keep
        )

    if fast:
        causal_lm.forward = forward
    try:
        yield
    finally:
        vars(causal_lm).pop("forward", None)
