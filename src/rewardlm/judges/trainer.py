"""What training a judge of texts and training a judge of pairs share: encoder, trainer, checkpoints, stored files."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging

from rewardlm.errors import TrainingError
from rewardlm.models.load import resolve_device, resolve_dtype
from rewardlm.progress import ProgressCallback
from rewardlm.runs import Run, peak_rss_mb
from rewardlm.scoring.encoder import public_name
from rewardlm.training.checkpoints import newest_whole, whole_or_none, write_manifest


def with_fresh_head(source: str, revision: str | None, labels: Sequence[str], problem_type: str, **options: Any) -> Any:
    """The encoder in float32 with a new head, one output per label; returns what ``from_pretrained`` does."""
    # transformers reports the new head as missing weights. Here that is intended.
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return AutoModelForSequenceClassification.from_pretrained(
            source,
            revision=revision,
            num_labels=len(labels),
            id2label=dict(enumerate(labels)),
            label2id={name: number for number, name in enumerate(labels)},
            problem_type=problem_type,
            dtype=torch.float32,
            **options,
        )
    finally:
        logging.set_verbosity(verbosity)


def arguments(run: Run, settings: Any, *, learning_rate: float, every: int, **more: Any) -> TrainingArguments:
    """The trainer's arguments for both kinds of judge: AdamW, a learning rate that rises and falls linearly, and a
    checkpoint after ``every`` steps. ``settings`` are those of either training.
    """
    device = resolve_device(settings.device)
    return TrainingArguments(
        output_dir=str(run.path / "checkpoints"),
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=64,
        learning_rate=learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        max_grad_norm=1.0,
        bf16=resolve_dtype(settings.precision, device) == torch.bfloat16,
        optim="adamw_torch_fused",
        use_cpu=device.type == "cpu",
        logging_steps=10,
        logging_nan_inf_filter=False,
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=settings.seed,
        data_seed=settings.seed,
        **more,
    )


class JudgeTrainer(Trainer):  # type: ignore[misc]
    """transformers' trainer, which leaves no half checkpoint where there is no room for a whole one."""

    def _save_checkpoint(self, *given: Any, **more: Any) -> None:
        with whole_or_none(Path(self.args.output_dir), self.state.global_step):
            super()._save_checkpoint(*given, **more)


def fit(trainer: Trainer, run: Run) -> None:
    """Train, from the newest whole checkpoint of ``run`` on. Its metrics after that checkpoint are removed."""
    trainer.remove_callback(PrinterCallback)
    folders = (run.path / "checkpoints").glob("checkpoint-*")
    resume = newest_whole(sorted(folders, key=_step_of))
    run.forget_after(_step_of(resume) if resume else 0)
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)


def save_adapter(model: Any, encoder: str, folder: Path) -> None:
    """Save the adapter on ``encoder`` in half precision: the rounding is far below the noise of its training data."""
    for config in model.peft_config.values():
        config.base_model_name_or_path = public_name(encoder)
        config.revision = None
    model.half()
    model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    model.float()


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def head_of(model: Any) -> nn.Linear:
    """The last layer of a sequence classifier, which peft may have wrapped: the last one with an output per label.

    Raises TrainingError where there is none.
    """
    labels = model.config.num_labels
    heads = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module.out_features == labels
        and not {"original_module", "lora_A", "lora_B"} & set(name.split("."))
    ]
    if not heads:
        raise TrainingError(
            f"{type(model).__name__} has no linear layer with {labels} outputs: choose another encoder, or "
            "calibration=none"
        )
    return heads[-1]


class Watch(TrainerCallback):  # type: ignore[misc]
    """Writes metrics.jsonl, reports progress, refuses NaN, and marks checkpoints that are complete."""

    def __init__(self, run: Run, report: ProgressCallback | None) -> None:
        self.run = run
        self.report = report
        self.started = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        names = ("loss", "grad_norm", "learning_rate", "eval_loss")
        metrics = {name: float(logs[name]) for name in names if name in logs}
        if not {"loss", "eval_loss"} & metrics.keys():
            return  # the trainer's closing summary
        wrong = [name for name in ("loss", "grad_norm", "eval_loss") if not math.isfinite(metrics.get(name, 0.0))]
        if wrong:
            raise TrainingError(
                f"step {state.global_step}: {wrong[0]} is {metrics[wrong[0]]}; the last checkpoint is kept: "
                "lower the learning rate or set precision=float32"
            )
        record = {
            "step": state.global_step,
            "seconds": time.perf_counter() - self.started,
            "epoch": state.epoch,
            **metrics,
            "peak_rss_mb": peak_rss_mb(),
        }
        self.started = time.perf_counter()
        self.run.append("metrics", [record])
        if self.report is not None:
            self.report(state.global_step, state.max_steps, record)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        write_manifest(Path(args.output_dir) / f"checkpoint-{state.global_step}")
