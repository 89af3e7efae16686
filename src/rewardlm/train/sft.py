"""Counter-narrative fine-tuning: TRL's SFTTrainer on tokens and masks that we built.

Every hate-speech/counter-narrative pair is a sample with all its antecedent turns; the loss is on the answer only. The
trainer is given ``input_ids`` and ``completion_mask``, so that no text of a data set is ever read as a special token.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from peft import PeftModel
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from rewardlm.config import FinetuneSettings
from rewardlm.data.chat import ChatFormat, Encoded
from rewardlm.data.dialogues import Pair, load_dialogues, pairs, split_by_component
from rewardlm.errors import DataError, TrainingError
from rewardlm.models.load import load_policy
from rewardlm.models.lora import add_lora, load_adapter, save_adapter
from rewardlm.runs import Run, peak_rss_mb, write_atomically

Report = Callable[[int, int, dict[str, Any]], None]

FREE_SETTINGS = ("device", "micro_batch_size", "checkpoint_every")
_WHOLE = "rewardlm-complete.json"


def finetune(
    settings: FinetuneSettings,
    out: Path,
    *,
    report: Report | None = None,
    say: Callable[[str], None] | None = None,
) -> Run:
    """Train an adapter on dialogues in ``out``; a finished run is returned as it is, a killed one goes on.

    ``say`` gets one sentence on the data: dialogues, pairs, what was dropped and why. ``report(step, steps, metrics)`` is
    called after every optimizer step. Raises DataError for unusable dialogues and TrainingError for a loss that is NaN.
    """
    run = Run.start(out, kind="finetune", label="FT", settings=settings.model_dump(mode="json"), free=FREE_SETTINGS)
    if run.finished:
        return run
    dialogue_set = load_dialogues(settings.dialogues)
    whole = pairs(dialogue_set.dialogues)
    if say is not None:
        say(whole.summary + _notes({**dialogue_set.notes, **whole.notes}))
    train_dialogues, validation_dialogues = split_by_component(
        dialogue_set.dialogues, validation=settings.validation, seed=settings.seed
    )
    train, validation = pairs(train_dialogues).pairs, pairs(validation_dialogues).pairs
    if settings.limit is not None and settings.limit < len(train):
        train = random.Random(settings.seed).sample(train, settings.limit)
    if not train:
        raise DataError(f"dialogues {settings.dialogues}: no pair is left to train on ({whole.summary})")

    policy = load_policy(settings)
    if settings.adapter is None:
        add_lora(policy, settings.lora, seed=settings.seed)
    else:
        load_adapter(policy, settings.adapter, trainable=True)
    limit = min(settings.max_length, policy.max_positions)
    train_rows, shortened = _encode(policy.chat, train, limit)
    validation_rows, _ = _encode(policy.chat, validation, limit)
    run.update(
        **policy.describe(),
        dialogues={
            "source": settings.dialogues,
            "rows": dialogue_set.n_rows,
            "dialogues": whole.n_dialogues,
            "pairs": whole.total,
            "dropped": whole.dropped,
            "notes": {**dialogue_set.notes, **whole.notes},
            "train_pairs": len(train_rows),
            "validation_pairs": len(validation_rows),
            "shortened_histories": shortened,
            "summary": whole.summary,
        },
    )
    checkpoints = run.path / "checkpoints"
    resume = _latest(checkpoints)
    _forget_after(run, int(resume.name.rpartition("-")[2]) if resume else 0)

    disable_progress_bar()
    micro = settings.micro_batch_size or settings.batch_size
    if settings.batch_size % micro:
        raise DataError(f"batch_size {settings.batch_size} is not a multiple of micro_batch_size {micro}")
    policy.tokenizer.pad_token = policy.tokenizer.pad_token or policy.tokenizer.eos_token
    watch = _Watch(run, report)
    trainer = SFTTrainer(
        model=policy.model,
        processing_class=policy.tokenizer,
        train_dataset=Dataset.from_list(train_rows),
        eval_dataset=Dataset.from_list(validation_rows) if validation_rows else None,
        args=SFTConfig(
            output_dir=str(checkpoints),
            per_device_train_batch_size=micro,
            per_device_eval_batch_size=micro,
            gradient_accumulation_steps=settings.batch_size // micro,
            num_train_epochs=settings.epochs,
            max_steps=settings.max_steps or -1,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=settings.warmup_ratio,
            weight_decay=0.0,
            train_sampling_strategy="group_by_length",
            completion_only_loss=True,
            max_length=None,  # cut by us already, at whole turns
            packing=False,
            bf16=False,  # the base is loaded in its precision; the adapter stays float32
            gradient_checkpointing=False,
            use_cpu=policy.device.type == "cpu",
            logging_steps=1,
            eval_strategy="epoch" if validation_rows else "no",
            save_strategy="steps",
            save_steps=settings.checkpoint_every,
            save_total_limit=2,
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            seed=settings.seed,
            data_seed=settings.seed,
        ),
        callbacks=[watch],
    )
    _quiet(trainer)
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    model = trainer.accelerator.unwrap_model(trainer.model)
    assert isinstance(model, PeftModel)
    save_adapter(model, run.path / "adapter")
    run.update(status="finished", steps=trainer.state.global_step, **_losses(run))
    return run


def _encode(chat: ChatFormat, samples: list[Pair], limit: int) -> tuple[list[dict[str, list[int]]], int]:
    """Rows for the trainer. Where a sample is too long its oldest exchanges go; if that isn't enough, the answer's end."""
    rows, shortened = [], 0
    for pair in samples:
        history = [*pair.history]
        encoded = chat.encode_pair(history, pair.answer)
        cut = False
        while len(encoded.input_ids) > limit and len(history) > 2:
            history, cut = history[2:], True
            encoded = chat.encode_pair(history, pair.answer)
        if len(encoded.input_ids) > limit:
            encoded, cut = Encoded(encoded.input_ids[:limit], encoded.completion_mask[:limit]), True
        shortened += cut
        if any(encoded.completion_mask):
            rows.append({"input_ids": encoded.input_ids, "completion_mask": encoded.completion_mask})
    return rows, shortened


def _notes(notes: dict[str, int]) -> str:
    return "; " + ", ".join(f"{count:,} {reason}" for reason, count in sorted(notes.items())) if notes else ""


def _quiet(trainer: SFTTrainer) -> None:
    """Progress is reported by us; the trainer's own printing would break the bar."""
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)


def _latest(checkpoints: Path) -> Path | None:
    """The newest checkpoint that was written to its end; a killed process's half-written one is removed."""
    found = None
    for folder in sorted(checkpoints.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2])):
        if (folder / _WHOLE).exists():
            found = folder
        else:
            shutil.rmtree(folder)
    return found


def _forget_after(run: Run, step: int) -> None:
    records = list(run.read("metrics"))
    kept = [record for record in records if record["step"] <= step]
    if len(kept) < len(records):
        run.replace("metrics", kept)


def _losses(run: Run) -> dict[str, float | None]:
    records = list(run.read("metrics"))
    losses = [record["loss"] for record in records if "loss" in record]
    evaluated = [record["eval_loss"] for record in records if "eval_loss" in record]
    return {
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "eval_loss": evaluated[-1] if evaluated else None,
    }


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Writes metrics.jsonl, reports progress, refuses NaN, and marks checkpoints that are complete."""

    def __init__(self, run: Run, report: Report | None) -> None:
        self.run = run
        self.report = report
        self.started = time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = time.perf_counter()

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
        for name in ("loss", "grad_norm"):
            if not math.isfinite(metrics.get(name, 0.0)):
                raise TrainingError(
                    f"step {state.global_step}: the {name} is {metrics[name]}; the last checkpoint is kept: "
                    "lower the learning rate or use --dtype float32"
                )
        metrics = {
            "step": state.global_step,
            "seconds": time.perf_counter() - self.started,
            "epoch": state.epoch,
            **metrics,
            "peak_rss_mb": peak_rss_mb(),
        }
        self.run.append("metrics", [metrics])
        if self.report is not None:
            self.report(state.global_step, state.max_steps, metrics)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        write_atomically(folder / _WHOLE, json.dumps({"step": state.global_step}).encode())
