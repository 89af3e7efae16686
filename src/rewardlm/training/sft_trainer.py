"""TRL's SFTTrainer as fine-tuning uses it: on several processes and, where possible, by RL's pass (sft_pass.py) in the
place of TRL's.

Several processes share each batch's rows. A batch that can't be shared evenly is filled up with rows that have no loss:
so every process makes the same number of passes, and the numbers are those of a single process.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTTrainer

from rewardlm.models.budget import Budget
from rewardlm.models.processes import Processes
from rewardlm.training.sft_pass import Loss, loss_of, rows_of, split
from rewardlm.training.trl_parts import OurOrder


class Trainer(OurOrder, SFTTrainer):  # type: ignore[misc]
    """SFTTrainer with our order of rows. Where memory runs out, a microbatch is done again in pieces of at most
    ``budget`` rows. With ``fast``, sft_pass computes losses and gradients.
    """

    processes: Processes
    budget: Budget
    fast: bool = False

    def training_step(
        self, model: Any, inputs: dict[str, torch.Tensor], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        if self.args.world_size > 1:
            # No second try: this process would send its gradients once too often, and the others would wait.
            loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
            return loss
        # The gradient from the batch's earlier microbatches, put back before another try. An adapter's is small.
        learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
        before = [None if parameter.grad is None else parameter.grad.clone() for parameter in learnt]
        rows, first_size = len(inputs["labels"]), self.budget.size
        # Each piece's loss is the sum over its tokens, divided by the same number as the whole microbatch's.
        counted = (inputs["labels"][:, 1:] != -100).sum() if num_items_in_batch is None else num_items_in_batch

        def step(size: int) -> torch.Tensor:
            if size < first_size:
                for parameter, gradient in zip(learnt, before, strict=True):
                    parameter.grad = None if gradient is None else gradient.clone()
            pieces = [slice(start, start + size) for start in range(0, rows, size)]
            plain = super(Trainer, self).training_step
            one = self._fast_step if self.fast else plain
            losses = [one(model, {k: v[piece] for k, v in inputs.items()}, counted) for piece in pieces]
            return torch.stack(losses).sum()

        return self.budget.run(step, least=1)

    def _fast_step(self, model: Any, inputs: dict[str, torch.Tensor], counted: torch.Tensor | int) -> torch.Tensor:
        """Add a microbatch's gradient to what is there. Its loss is a sum over tokens, divided by ``counted``."""
        model.train()
        inputs = self._prepare_inputs(inputs)
        causal_lm, rows = model.get_base_model(), rows_of(inputs)
        total = Loss(torch.zeros((), device=self.args.device))
        for numbers in split(causal_lm, rows):
            part = loss_of(causal_lm, rows, numbers)
            loss = part.nll / counted
            self.accelerator.backward(loss)
            total += replace(part, nll=loss.detach())
        self._note("train", total)
        self._total_train_tokens += int(inputs["attention_mask"].sum())
        return total.nll

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        if not self.fast or torch.is_grad_enabled():
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        # An evaluation asks for the loss alone.
        causal_lm, rows = model.get_base_model(), rows_of(inputs)
        total = Loss(torch.zeros((), device=self.args.device))
        for numbers in split(causal_lm, rows):
            total += loss_of(causal_lm, rows, numbers)
        self._note("eval", total)
        return total.nll / max(1, total.tokens)

    def _note(self, mode: str, found: Loss) -> None:
        """Note what TRL's trainer logs beside the loss: means over a microbatch's labelled tokens."""
        self._metrics[mode]["entropy"].append(found.entropy / max(1, found.tokens))
        self._metrics[mode]["mean_token_accuracy"].append(found.likeliest / max(1, found.tokens))
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """This process's share of the batches, whose rows are the same however many processes there are."""
        rows, size = len(self.eval_dataset), self.args.per_device_eval_batch_size
        batches = [list(range(start, min(start + size, rows))) for start in range(0, rows, size)]
        share = self.processes.share(batches)
        # Even without gradients, all must make equally many passes: some repeat the first batch, which doesn't count.
        share += batches[:1] * (-(-len(batches) // self.processes.size) - len(share))
        dataset = self._remove_unused_columns(self.eval_dataset, description="Evaluation")
        return DataLoader(dataset, batch_sampler=share, collate_fn=self.data_collator)

    def evaluation_loop(self, dataloader: DataLoader[Any], *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Each row's batch loss, averaged over the rows of all processes, as in the trainer's own loop."""
        self.model.eval()
        n_batches = -(-len(self.eval_dataset) // self.args.per_device_eval_batch_size)
        counted = len(range(self.processes.rank, n_batches, self.processes.size))
        found = {"loss": 0.0, "rows": 0.0}
        for number, inputs in enumerate(dataloader):
            loss, _, _ = self.prediction_step(self.model, inputs, prediction_loss_only=True)
            if number < counted:
                found["loss"] += float(loss) * len(inputs["input_ids"])
                found["rows"] += len(inputs["input_ids"])
        found = self.processes.sums(found)
        metrics = {"eval_loss": found["loss"] / found["rows"]}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(self.eval_dataset))
