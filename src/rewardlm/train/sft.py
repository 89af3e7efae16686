"""Counter-narrative fine-tuning: TRL's SFTTrainer on tokens and masks that we built.

Every hate-speech/counter-narrative pair is a sample with all its antecedent turns; the loss is on the answer only. The
trainer is given ``input_ids`` and ``completion_mask``, so that no text of a data set is ever read as a special token.
"""

from __future__ import annotations

import math
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from peft import PeftModel
from torch.utils.data import Sampler
from transformers import TrainerCallback
from transformers.trainer_pt_utils import get_length_grouped_indices
from trl import SFTConfig, SFTTrainer

from rewardlm.config import FinetuneSettings
from rewardlm.data.chat import ChatFormat, Encoded
from rewardlm.data.dialogues import Pair, load_dialogues, pairs, split_by_component
from rewardlm.errors import DataError, TrainingError
from rewardlm.models.budget import Budget
from rewardlm.models.generate import stream_seed
from rewardlm.models.load import load_policy
from rewardlm.models.lora import add_lora, load_adapter, save_adapter
from rewardlm.models.quantised import check_gradients
from rewardlm.runs import Run, peak_rss_mb, rewards_of
from rewardlm.train.checkpoints import MANIFEST, newest_usable, step_of, write_manifest

Report = Callable[[int, int, dict[str, Any]], None]

FREE_SETTINGS = ("device", "micro_batch_size", "gradient_checkpointing", "checkpoint_every", "resume")
# Without these a checkpoint of the trainer can't be gone on from, not even inexactly.
_NEEDED = ("adapter_", "trainer_state.json")


def finetune(
    settings: FinetuneSettings,
    out: Path,
    *,
    report: Report | None = None,
    say: Callable[[str], None] | None = None,
) -> Run:
    """Train an adapter on dialogues in ``out``; a finished run is returned as it is, a killed one goes on.

    ``say`` gets one sentence on the data (dialogues, pairs, what was dropped and why) and one on samples that are too
    long. ``report(step, steps, metrics)`` is called after every optimizer step. Raises DataError for unusable dialogues
    and TrainingError for NaN, and where no checkpoint can be gone on from.
    """
    run = Run.start(
        out,
        kind="finetune",
        label="FT",
        settings=settings.model_dump(mode="json"),
        free=FREE_SETTINGS,
        added=("quantisation",),
    )
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
    left_out = len(train) - len(train_rows)
    if not train_rows:
        raise DataError(f"no pair leaves room for an answer in max_length {limit}: raise max_length")
    if shortened and say is not None:
        say(
            f"{shortened:,} of {len(train):,} pairs are longer than {limit} tokens: they lose their oldest turns, or "
            "the end of the answer" + (f"; {left_out:,} are left out, having no room for one" if left_out else "")
        )
    run.update(
        **policy.describe(),
        rewards=rewards_of(settings.adapter) if settings.adapter else [],
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
            "left_out": left_out,
            "summary": whole.summary,
        },
    )
    checkpoints = run.path / "checkpoints"
    resume = newest_usable(_finished_checkpoints(checkpoints), resume=settings.resume, needed=_NEEDED)
    if resume is not None and resume.damaged:
        run.update(inexact_resume=resume.step)
    run.forget_after(resume.step if resume else 0)

    disable_progress_bar()
    micro = settings.micro_batch_size or settings.batch_size
    if settings.batch_size % micro:
        raise DataError(f"batch_size {settings.batch_size} is not a multiple of micro_batch_size {micro}")
    policy.tokenizer.pad_token = policy.tokenizer.pad_token or policy.tokenizer.eos_token
    budget = Budget(micro, "micro_batch_size")
    watch = _Watch(run, report, budget)
    adapter = {id(parameter): parameter.data for parameter in policy.model.parameters() if parameter.requires_grad}
    trainer = _Trainer(
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
            completion_only_loss=True,
            max_length=None,  # cut by us already, at whole turns
            packing=False,
            bf16=False,  # the base is loaded in its precision; the adapter stays float32
            gradient_checkpointing=settings.gradient_checkpointing,
            # The other kind needs the input's gradient, which nobody wants of frozen embeddings.
            gradient_checkpointing_kwargs={"use_reentrant": False} if settings.gradient_checkpointing else None,
            use_cpu=policy.device.type == "cpu",
            logging_steps=1,
            logging_nan_inf_filter=False,  # it would log the mean of earlier losses where one is NaN
            # Each epoch's end, but counted in steps: then the evaluation comes before the checkpoint of that step, and
            # the random state that is saved is the one that an uninterrupted run goes on with.
            eval_strategy="steps" if validation_rows else "no",
            eval_steps=math.ceil(len(train_rows) / settings.batch_size),
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
    for parameter in policy.model.parameters():
        # TRL rounds an adapter on a quantised base to bfloat16, where small updates are lost.
        parameter.data = adapter.get(id(parameter), parameter.data)
    trainer.order = _Order([len(row["input_ids"]) for row in train_rows], settings.batch_size, settings.seed)
    trainer.afresh = resume is not None and bool(resume.damaged)
    trainer.budget = budget
    _quiet(trainer)
    trainer.train(resume_from_checkpoint=str(resume.folder) if resume else None)
    records = list(run.read("metrics"))
    if validation_rows and records and "eval_loss" not in records[-1]:
        trainer.evaluate()  # the last epoch was not a whole one
    model = trainer.accelerator.unwrap_model(trainer.model)
    assert isinstance(model, PeftModel)
    save_adapter(model, run.path / "adapter")
    run.update(status="finished", steps=trainer.state.global_step, **_losses(run))
    return run


def _encode(chat: ChatFormat, samples: list[Pair], limit: int) -> tuple[list[dict[str, list[int]]], int]:
    """Rows for the trainer. Of too long a sample the oldest exchanges go; if that isn't enough, the answer's end."""
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


def _finished_checkpoints(checkpoints: Path) -> list[Path]:
    """Checkpoints that were written to their end, oldest first; a killed process's half-written one is removed."""
    found = []
    for folder in sorted(checkpoints.glob("checkpoint-*"), key=step_of):
        if (folder / MANIFEST).exists():
            found.append(folder)
        else:
            shutil.rmtree(folder)
    return found


def _losses(run: Run) -> dict[str, float | None]:
    records = list(run.read("metrics"))
    losses = [record["loss"] for record in records if "loss" in record]
    evaluated = [record["eval_loss"] for record in records if "eval_loss" in record]
    return {
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "eval_loss": evaluated[-1] if evaluated else None,
    }


class _Order(Sampler[int]):
    """Rows of similar length side by side, in another order each epoch, which follows from (seed, epoch) alone.

    The trainer's own sampler draws from the global random state, so a run that resumes in a later epoch would see the
    rows in another order than an uninterrupted one.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(stream_seed("sft", self.seed, self.epoch))
        order: list[int] = get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)
        return iter(order)


class _Trainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer with our order of rows; with ``afresh``, a checkpoint gives it the adapter and the step alone.

    Where memory runs out, a microbatch is done again in pieces of at most ``budget`` rows.
    """

    order: _Order
    budget: Budget
    afresh: bool = False

    def training_step(
        self, model: Any, inputs: dict[str, torch.Tensor], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        if self.args.world_size > 1:
            # The others would wait for a gradient that this process sends once too often.
            loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
            return loss
        # What the batch's earlier microbatches left is put back before another try. An adapter's is small.
        learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
        before = [None if parameter.grad is None else parameter.grad.clone() for parameter in learnt]
        rows, first_size = len(inputs["labels"]), self.budget.size
        # Each piece is a sum over its tokens, divided by what the whole divides by.
        counted = (inputs["labels"][:, 1:] != -100).sum() if num_items_in_batch is None else num_items_in_batch

        def step(size: int) -> torch.Tensor:
            if size < first_size:
                for parameter, gradient in zip(learnt, before, strict=True):
                    parameter.grad = None if gradient is None else gradient.clone()
            pieces = [slice(start, start + size) for start in range(0, rows, size)]
            losses = [
                super(_Trainer, self).training_step(model, {k: v[piece] for k, v in inputs.items()}, counted)
                for piece in pieces
            ]
            return torch.stack(losses).sum()

        return self.budget.run(step, least=1)

    def _get_train_sampler(self, train_dataset: Any = None) -> _Order:
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


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Writes metrics.jsonl, reports progress, refuses NaN, and marks checkpoints that are complete."""

    def __init__(self, run: Run, report: Report | None, budget: Budget) -> None:
        self.run = run
        self.report = report
        self.budget = budget
        self.started = time.perf_counter()
        self.checked = False

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = time.perf_counter()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
        grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        if not grads:
            raise TrainingError(
                f"step {state.global_step + 1}: no gradient reaches the adapter; nothing was updated: do lora.targets "
                "name layers that the answers pass through?"
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
        self.checked = False  # A pass without gradients is what could cut them off.

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
        write_manifest(Path(args.output_dir) / f"checkpoint-{state.global_step}")
