"""What every use of TRL's trainers shares here: our order of rows, and metrics.jsonl with whole checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Sampler
from transformers import Trainer as HFTrainer
from transformers import TrainerCallback
from transformers.trainer_pt_utils import get_length_grouped_indices

from rewardlm.config import FinetuneSettings, PreferSettings
from rewardlm.errors import TrainingError
from rewardlm.models.budget import Budget
from rewardlm.models.generate import stream_seed
from rewardlm.models.processes import Processes
from rewardlm.models.quantised import check_gradients
from rewardlm.models.sharding import divided_names
from rewardlm.progress import ProgressCallback
from rewardlm.runs import Run, peak_rss_mb
from rewardlm.training.checkpoints import whole_or_none, write_manifest


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


# What fine-tuning's lines in metrics.jsonl have, by TRL's names.
SFT_METRICS = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "eval_loss": "eval_loss",
    "mean_token_accuracy": "token_accuracy",
}


def arguments(
    settings: FinetuneSettings | PreferSettings,
    folder: Path,
    *,
    learning_rate: float,
    micro: int,
    n_micro: int,
    device: torch.device,
) -> dict[str, Any]:
    """What a trainer is told, whatever its loss: ``n_micro`` times ``micro`` rows a step on each process, a cosine
    schedule from ``learning_rate``, whole checkpoints in ``folder``, and nothing printed.
    """
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": n_micro,
        "learning_rate": learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": settings.warmup_ratio,
        "weight_decay": 0.0,
        "max_length": None,  # cut by us already
        "bf16": False,  # the base is loaded in its precision; the adapter stays float32
        "gradient_checkpointing": settings.gradient_checkpointing,
        # The reentrant kind needs a gradient of its input, and frozen embeddings give none.
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if settings.gradient_checkpointing else None,
        "use_cpu": device.type == "cpu",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would log the mean of earlier losses where one is NaN
        "save_strategy": "steps",
        "save_steps": settings.checkpoint_every,
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "ddp_find_unused_parameters": False,
        "seed": settings.seed,
        "data_seed": settings.seed,
    }


@contextmanager
def kept_in_float32(model: Any) -> Iterator[None]:
    """Inside, TRL may make a trainer: it rounds an adapter on a quantised base to bfloat16, where small updates are
    lost. Afterwards the adapter is what it was.
    """
    adapter = {id(parameter): parameter.data for parameter in model.parameters() if parameter.requires_grad}
    yield
    for parameter in model.parameters():
        if id(parameter) in adapter:
            parameter.data = adapter[id(parameter)]


class InOrder(Sampler[int]):
    """``n`` rows as they stand, for a trainer whose epochs were laid out beforehand."""

    def __init__(self, n: int) -> None:
        self.n = n

    def set_epoch(self, epoch: int) -> None:
        """There is one epoch."""

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.n))


class OurOrder(HFTrainer):  # type: ignore[misc]
    """For a trainer of TRL's: rows come in ``order``. With ``afresh`` it takes only the adapter and the step from a
    checkpoint.
    """

    order: Order | InOrder
    afresh: bool = False

    def _get_train_sampler(self, train_dataset: Any = None) -> Order | InOrder:
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

    def _save_checkpoint(self, *given: Any, **more: Any) -> None:
        with whole_or_none(Path(self.args.output_dir), self.state.global_step):
            super()._save_checkpoint(*given, **more)

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


class RunCallback(TrainerCallback):  # type: ignore[misc]
    """Refuses NaN in every process. The first process writes metrics.jsonl, reports progress and marks complete
    checkpoints.

    ``names`` are the metrics by TRL's names. A trainer that begins after ``before`` steps of a run's ``steps`` counts
    on from there; ``more``, asked with the trainer's own step, gives further fields of a line. ``track`` gets each line
    too.
    """

    def __init__(
        self,
        run: Run,
        report: ProgressCallback | None,
        processes: Processes,
        budget: Budget,
        *,
        names: Mapping[str, str] = SFT_METRICS,
        before: int = 0,
        steps: int | None = None,
        more: Callable[[int], Mapping[str, Any]] | None = None,
        track: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        self.run = run
        self.report = report
        self.processes = processes
        self.budget = budget
        self.names = names
        self.before, self.steps = before, steps
        self.more = more or (lambda _: {})
        self.track = track
        self.started = time.perf_counter()
        self.checked = False

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = time.perf_counter()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
        grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        if not grads:
            raise TrainingError(
                f"step {self.before + state.global_step + 1}: no gradient reaches the adapter; nothing was updated: "
                "set lora.targets to layers that the answers pass through"
            )
        if not self.checked:
            check_gradients(model)
            self.checked = True
        if not all(bool(torch.isfinite(grad).all()) for grad in grads):
            raise TrainingError(
                f"step {self.before + state.global_step + 1}: the gradient holds NaN or infinity; the update was not "
                "applied and the last checkpoint is kept: lower the learning rate or use --dtype float32"
            )

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.checked = False  # A pass without gradients may have blocked them.

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        metrics = {ours: float(logs[theirs]) for theirs, ours in self.names.items() if theirs in logs}
        if not {"loss", "eval_loss"} & metrics.keys():
            return  # the trainer's closing summary
        if not math.isfinite(metrics.get("loss", 0.0)):
            raise TrainingError(
                f"step {self.before + state.global_step}: the loss is {metrics['loss']}; the last checkpoint is kept: "
                "lower the learning rate or use --dtype float32"
            )
        if not self.processes.is_main:
            return
        metrics = {
            "step": self.before + state.global_step,
            "seconds": time.perf_counter() - self.started,
            "epoch": state.epoch,
            **metrics,
            **self.more(state.global_step),
            "peak_rss_mb": peak_rss_mb(),
            "micro_batch_size": self.budget.size,
            "out_of_memory": self.budget.shortages,
        }
        records = list(self.run.read("metrics")) if "eval_loss" in metrics else []
        if records and records[-1]["step"] == metrics["step"]:
            # One line a step: an evaluation adds to the line of the step that it follows.
            metrics = {**metrics, **records[-1], "eval_loss": metrics["eval_loss"]}
            self.run.replace("metrics", [*records[:-1], metrics])
        else:
            self.run.append("metrics", [metrics])
        if self.track is not None:
            self.track(metrics)
        if self.report is not None:
            self.report(self.before + state.global_step, self.steps or state.max_steps, metrics)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.processes.wait()  # Each has written its random state.
        if self.processes.is_main:
            write_manifest(Path(args.output_dir) / f"checkpoint-{state.global_step}")
