"""TRL's SFTTrainer as fine-tuning uses it: our order of rows, metrics.jsonl, whole checkpoints, several processes, and,
where possible, RL's pass (sft_pass.py) in the place of TRL's.

Several processes share each batch's rows. A batch that can't be shared evenly is filled up with rows that have no loss:
so every process makes the same number of passes, and the numbers are those of a single process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Sampler
from transformers import TrainerCallback
from transformers.trainer_pt_utils import get_length_grouped_indices
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTTrainer

from rewardlm.errors import TrainingError
from rewardlm.models.budget import Budget
from rewardlm.models.generate import stream_seed
from rewardlm.models.processes import Processes
from rewardlm.models.quantised import check_gradients
from rewardlm.models.sharding import divided_names
from rewardlm.progress import ProgressCallback
from rewardlm.runs import Run, peak_rss_mb
from rewardlm.training.checkpoints import write_manifest
from rewardlm.training.sft_pass import Loss, loss_of, rows_of, split


class Order(Sampler[int]):
    """Rows of similar length side by side. Each epoch has another order, which depends on (seed, epoch) alone.

    The trainer's own sampler draws from the global random state, so a run that resumes in a later epoch would see the
    rows in another order than an uninterrupted one. The row after the last, which has no loss, fills an epoch up to a
    multiple of ``evenly``: the rows that all processes run at once.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int, *, evenly: int = 1) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.filling = -len(lengths) % evenly
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths) + self.filling

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(stream_seed("sft", self.seed, self.epoch))
        order: list[int] = get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)
        return iter([*order, *[len(self.lengths)] * self.filling])


class Trainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer with our order of rows; with ``afresh``, it takes only the adapter and the step from a checkpoint.

    Where memory runs out, a microbatch is done again in pieces of at most ``budget`` rows. With ``fast``, sft_pass
    computes losses and gradients.
    """

    order: Order
    processes: Processes
    budget: Budget
    afresh: bool = False
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

    def _get_train_sampler(self, train_dataset: Any = None) -> Order:
        return self.order

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.afresh:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        # The schedule follows from the step, so it is put there; the optimizer's moments start at zero.
        schedule, step = self.lr_scheduler, self.state.global_step
        rates = [base * at(step) for base, at in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
        schedule.load_state_dict({**schedule.state_dict(), "last_epoch": step, "_last_lr": rates})
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if not self.afresh:
            super()._load_rng_state(checkpoint)

    def _run_epoch(self, *, epoch: int, **more: Any) -> None:
        # In a resumed epoch of several processes, accelerate does not look as deep as our sampler lies.
        self.order.set_epoch(epoch)
        super()._run_epoch(epoch=epoch, **more)

    def _wrap_model(self, model: Any, training: bool = True, dataloader: Any = None) -> Any:
        divided = divided_names(model)
        if not divided or not training or isinstance(model, DistributedDataParallel):
            return super()._wrap_model(model, training, dataloader)
        # accelerate won't wrap a divided model. Here DDP adds up the adapter's gradients and ignores divided weights.
        model._ddp_params_and_buffers_to_ignore = divided
        devices = None if self.args.device.type == "cpu" else [self.args.device]
        return DistributedDataParallel(model, device_ids=devices)

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


class RunCallback(TrainerCallback):  # type: ignore[misc]
    """Refuses NaN in every process. The first process writes metrics.jsonl, reports progress and marks complete
    checkpoints."""

    def __init__(self, run: Run, report: ProgressCallback | None, processes: Processes, budget: Budget) -> None:
        self.run = run
        self.report = report
        self.processes = processes
        self.budget = budget
        self.started = time.perf_counter()
        self.checked = False

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = time.perf_counter()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
        grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        if not grads:
            raise TrainingError(
                f"step {state.global_step + 1}: no gradient reaches the adapter; nothing was updated: set lora.targets "
                "to layers that the answers pass through"
            )
        if not self.checked:
            check_gradients(model)
            self.checked = True
        if not all(bool(torch.isfinite(grad).all()) for grad in grads):
            raise TrainingError(
                f"step {state.global_step + 1}: the gradient holds NaN or infinity; the update was not applied and the "
                "last checkpoint is kept: lower the learning rate or use --dtype float32"
            )

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.checked = False  # A pass without gradients may have blocked them.

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        names = {
            "loss": "loss",
            "grad_norm": "grad_norm",
            "learning_rate": "learning_rate",
            "eval_loss": "eval_loss",
            "mean_token_accuracy": "token_accuracy",
        }
        metrics = {ours: float(logs[theirs]) for theirs, ours in names.items() if theirs in logs}
        if not {"loss", "eval_loss"} & metrics.keys():
            return  # the trainer's closing summary
        if not math.isfinite(metrics.get("loss", 0.0)):
            raise TrainingError(
                f"step {state.global_step}: the loss is {metrics['loss']}; the last checkpoint is kept: "
                "lower the learning rate or use --dtype float32"
            )
        if not self.processes.is_main:
            return
        metrics = {
            "step": state.global_step,
            "seconds": time.perf_counter() - self.started,
            "epoch": state.epoch,
            **metrics,
            "peak_rss_mb": peak_rss_mb(),
            "micro_batch_size": self.budget.size,
            "out_of_memory": self.budget.shortages,
        }
        records = list(self.run.read("metrics")) if "eval_loss" in metrics else []
        if records and records[-1]["step"] == state.global_step:
            # One line a step: an evaluation adds to the line of the step that it follows.
            metrics = {**metrics, **records[-1], "eval_loss": metrics["eval_loss"]}
            self.run.replace("metrics", [*records[:-1], metrics])
        else:
            self.run.append("metrics", [metrics])
        if self.report is not None:
            self.report(state.global_step, state.max_steps, metrics)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.processes.wait()  # Each has written its random state.
        if self.processes.is_main:
            write_manifest(Path(args.output_dir) / f"checkpoint-{state.global_step}")
