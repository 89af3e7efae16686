"""Counter-narrative fine-tuning: TRL's SFTTrainer on tokens and masks that we built.

Every hate-speech/counter-narrative pair is a sample with all its antecedent turns; the loss is on the answer only. The
trainer is given ``input_ids`` and ``completion_mask``, so that no text of a data set is ever read as a special token.
"""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from peft import PeftModel
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig

from rewardlm import fastpath
from rewardlm.config import FinetuneSettings, Resume
from rewardlm.data.chat import ChatFormat, Encoded, shorter_histories
from rewardlm.data.dialogues import Pair, load_dialogues, pairs, split_by_component
from rewardlm.errors import DataError, TrainingError
from rewardlm.models.budget import Budget
from rewardlm.models.load import Policy
from rewardlm.models.lora import add_lora, load_adapter, save_adapter
from rewardlm.models.processes import Processes, linked, writing
from rewardlm.models.sharding import load_for
from rewardlm.progress import ProgressCallback
from rewardlm.runs import Run, paid_for, reward_lineage, rewards_of
from rewardlm.scoring.lineage import lineage_of
from rewardlm.training.checkpoints import MANIFEST, Checkpoint, newest_usable, step_of
from rewardlm.training.replay import replayed
from rewardlm.training.retain import RetainCallback, Retained, retained
from rewardlm.training.sft_pass import why_plain
from rewardlm.training.sft_trainer import Trainer
from rewardlm.training.trl_parts import Order, RunCallback, arguments, kept_in_float32
from rewardlm.types import Dialogue, Message

FREE_SETTINGS = (
    "device",
    "micro_batch_size",
    "gradient_checkpointing",
    "checkpoint_every",
    "resume",
    "shard",
    "replay.batch_tokens",
    "replay.max_failed_share",
)
Row = dict[str, list[int]]

# Without these files a checkpoint of the trainer can't be resumed, not even inexactly.
_NEEDED = ("adapter_", "trainer_state.json")


@dataclass(frozen=True, slots=True)
class Samples:
    """Pairs as the trainer gets them; ``shortened`` lost their oldest turns or the answer's end, ``left_out`` had no
    room for an answer."""

    train: list[Row]
    validation: list[Row]
    shortened: int
    left_out: int


def finetune(
    settings: FinetuneSettings,
    out: Path,
    *,
    report: ProgressCallback | None = None,
    say: Callable[[str], None] | None = None,
) -> Run:
    """Train an adapter on dialogues in ``out``; a finished run is returned as it is, a killed one goes on.

    ``say`` gets one sentence on the data (dialogues, pairs, what was dropped and why) and one on samples that are too
    long. ``report(step, steps, metrics)`` is called after every optimizer step. Raises DataError for unusable
    dialogues, TrainingError for NaN and where no checkpoint can be resumed, and RunError where another command
    writes ``out``. On several processes each learns from its share of every batch, and the first writes.
    """
    with writing(out, settings.device) as processes:
        return _finetune(settings, out, processes, report, processes.voice(say))


def _finetune(
    settings: FinetuneSettings,
    out: Path,
    processes: Processes,
    report: ProgressCallback | None,
    say: Callable[[str], None],
) -> Run:
    recorded = settings.model_dump(mode="json")
    # What None stands for depends on who asks; a run from before anything was retained has None.
    recorded["retain"]["coef"] = settings.retain_coef or None
    # Every setting that came later leaves a training as it was, unless it is given.
    defaults = FinetuneSettings(model=settings.model).model_dump(mode="json")
    run = processes.first(
        lambda: Run.start(out, kind="finetune", label="FT", settings=recorded, free=FREE_SETTINGS, defaults=defaults)
    )
    if run.finished:
        return run

    # 1. Dialogues as pairs, in two parts that share no text; the base with its adapter; pairs as tokens and masks.
    dialogues = load_dialogues(
        settings.dialogues, text_column=settings.text_column, answer_column=settings.answer_column
    )
    whole = pairs(dialogues.dialogues)
    notes = {**dialogues.notes, **whole.notes}
    noted = ", ".join(f"{n:,} {reason}" for reason, n in sorted(notes.items()))
    say(f"{whole.summary}; {noted}" if noted else whole.summary)
    train, validation = _split(settings, dialogues.dialogues)
    if not train:
        raise DataError(f"dialogues {settings.dialogues}: no pair is left to train on ({whole.summary})")
    policy, _ = load_for(settings, processes, partial(_put_on, settings))
    own = processes.first(lambda: _replay(settings, policy, train, run, say))
    samples = _encode_all(settings, policy, [*train, *own], validation, say)

    # 2. Where a killed run stopped.
    described = {
        **policy.describe(),
        **_chosen_by(settings, own),
        "dialogues": {
            "source": settings.dialogues,
            "rows": dialogues.n_rows,
            "dialogues": whole.n_dialogues,
            "pairs": whole.total,
            "dropped": whole.dropped,
            "notes": notes,
            "train_pairs": len(samples.train),
            "validation_pairs": len(samples.validation),
            "shortened_histories": samples.shortened,
            "left_out": samples.left_out,
            "summary": whole.summary,
        },
        "processes": processes.size,
    }
    checkpoint = processes.first(lambda: _resume(run, settings.resume, described))
    if not all(processes.gather(lambda: [checkpoint is None or checkpoint.folder.is_dir()])):
        raise TrainingError(f"the processes see different files in {run.path}: --out must be a folder that all share")

    # 3. TRL's loop.
    held = retained(policy, settings, run, processes, say)
    trainer = _trainer(settings, policy, samples, run, processes, report, held)
    trainer.afresh = checkpoint is not None and bool(checkpoint.damaged)
    trainer.fast = _runs_fast(settings, policy, processes, say)
    with linked():
        trainer.train(resume_from_checkpoint=str(checkpoint.folder) if checkpoint else None)
        unevaluated = processes.first(lambda: "eval_loss" not in ([*run.read("metrics")] or [{"eval_loss": None}])[-1])
        if samples.validation and unevaluated:
            trainer.evaluate()  # the last epoch was not a whole one

    # 4. The adapter, where every other command looks for it.
    model = trainer.accelerator.unwrap_model(trainer.model)
    assert isinstance(model, PeftModel)

    def end() -> Run:
        save_adapter(model, run.adapter)
        run.update(status="finished", steps=trainer.state.global_step, **_losses(run))
        return run

    return processes.first(end)


def _split(settings: FinetuneSettings, dialogues: list[Dialogue]) -> tuple[list[Pair], list[Pair]]:
    """The pairs to train on, at most ``limit``, and those to validate on."""
    parts = split_by_component(dialogues, validation=settings.validation, seed=settings.seed)
    train, validation = (pairs(part).pairs for part in parts)
    if settings.limit is not None and settings.limit < len(train):
        train = random.Random(settings.seed).sample(train, settings.limit)
    return train, validation


def _replay(
    settings: FinetuneSettings, policy: Policy, train: list[Pair], run: Run, say: Callable[[str], None]
) -> list[Pair]:
    """The model's own answers. A run that was stopped after drawing them reads them back, because they are part of its
    training data from the start.
    """
    if not settings.replay.share:
        return []
    if "replay" not in run.meta:
        drawn = replayed(policy, settings, train)
        say(drawn.summary)
        run.replace("replay", map(asdict, drawn.pairs))
        run.update(replay={"pairs": len(drawn.pairs), "summary": drawn.summary})
    return [
        Pair(
            record["id"],
            record["dialogue_id"],
            tuple(Message(**turn) for turn in record["history"]),
            Message(**record["answer"]),
        )
        for record in run.read("replay")
    ]


def _chosen_by(settings: FinetuneSettings, own: list[Pair]) -> dict[str, Any]:
    """Judges that can't prove a gain of this adapter: its earlier rewards, and those that chose its ``own`` answers."""
    rewards = rewards_of(settings.adapter) if settings.adapter else []
    lineage = reward_lineage(settings.adapter) if settings.adapter else {}
    if own:
        judges = [name for name in (settings.replay.judge, settings.replay.counter_narrative) if name is not None]
        rewards = list(dict.fromkeys([*rewards, *judges]))
        lineage = {**lineage, **{name: lineage_of(name).to_dict() for name in judges}}
    earlier = paid_for(settings.adapter) if settings.adapter else []
    return {"rewards": rewards, "reward_lineage": lineage, "paid_for": earlier}


def _encode_all(
    settings: FinetuneSettings, policy: Policy, train: list[Pair], validation: list[Pair], say: Callable[[str], None]
) -> Samples:
    """Both parts as rows. Raises DataError where no answer has room."""
    limit = min(settings.max_length, policy.max_positions)
    rows, shortened = _encode(policy.chat, train, limit)
    left_out = len(train) - len(rows)
    if not rows:
        raise DataError(f"no pair leaves room for an answer in max_length {limit}: raise max_length")
    if shortened:
        say(
            f"{shortened:,} of {len(train):,} pairs are longer than {limit} tokens: they lose their oldest turns, or "
            "the end of the answer"
            + (f"; {left_out:,} are left out, because they leave no room for an answer" if left_out else "")
        )
    return Samples(rows, _encode(policy.chat, validation, limit)[0], shortened, left_out)


def _trainer(
    settings: FinetuneSettings,
    policy: Policy,
    samples: Samples,
    run: Run,
    processes: Processes,
    report: ProgressCallback | None,
    held: Retained | None,
) -> Trainer:
    """TRL's trainer with our order of rows and our way to report; nothing is trained yet."""
    disable_progress_bar()
    train_rows, validation_rows = samples.train, samples.validation
    micro, n_micro = _microbatches(settings, processes.size)
    # Fills up a last batch that the processes can't share evenly.
    blank: Row = {"input_ids": train_rows[0]["input_ids"][:2], "completion_mask": [0, 0]}
    policy.tokenizer.pad_token = policy.tokenizer.pad_token or policy.tokenizer.eos_token
    budget = Budget(micro, "micro_batch_size", again=processes.size == 1)
    retaining = RetainCallback(held)
    with kept_in_float32(policy.model):
        trainer = Trainer(
            model=policy.model,
            processing_class=policy.tokenizer,
            train_dataset=Dataset.from_list([*train_rows, blank] if processes.size > 1 else train_rows),
            eval_dataset=Dataset.from_list(validation_rows) if validation_rows else None,
            args=SFTConfig(
                **arguments(
                    settings,
                    run.path / "checkpoints",
                    learning_rate=settings.learning_rate,
                    micro=micro,
                    n_micro=n_micro,
                    device=policy.device,
                ),
                # An evaluation is the same however many processes share it.
                per_device_eval_batch_size=settings.micro_batch_size or settings.batch_size,
                num_train_epochs=settings.epochs,
                max_steps=settings.max_steps or -1,
                completion_only_loss=True,
                packing=False,
                # Each epoch's end, but counted in steps: then the evaluation comes before the checkpoint of that step,
                # and the random state that is saved is the one that an uninterrupted run goes on with.
                eval_strategy="steps" if validation_rows else "no",
                eval_steps=math.ceil(len(train_rows) / settings.batch_size),
            ),
            callbacks=[RunCallback(run, report, processes, budget, more=retaining.of_step), retaining],
        )
    trainer.processes = processes
    trainer.budget = budget
    lengths = [len(row["input_ids"]) for row in train_rows]
    evenly = micro * processes.size if processes.size > 1 else 1
    trainer.order = Order(lengths, settings.batch_size, settings.seed, evenly=evenly)
    trainer.remove_callback(PrinterCallback)  # Progress is reported by us; its printing would break the bar.
    return trainer


def _runs_fast(settings: FinetuneSettings, policy: Policy, processes: Processes, say: Callable[[str], None]) -> bool:
    """Whether sft_pass computes the losses instead of TRL's own pass; ``say`` gets the reason if that costs time.

    It gets none where the user has shut the fast path, nor on another device, where TRL's own pass is fast.
    """
    reason: str | None = "several processes share each batch"
    if processes.size == 1:
        reason = why_plain(policy.model, policy.device, recompute=settings.gradient_checkpointing)
    if reason is not None and fastpath.is_open() and policy.device.type == "cpu":
        say(f"fine-tuning runs the model by TRL's own pass, which is slower: {reason}")
    return reason is None


def _put_on(settings: FinetuneSettings, policy: Policy) -> None:
    if settings.adapter is None:
        add_lora(policy, settings.lora, seed=settings.seed)
    else:
        load_adapter(policy, settings.adapter, trainable=True)


def _microbatches(settings: FinetuneSettings, size: int) -> tuple[int, int]:
    """How many rows a process runs at once, and how often for a batch. Raises DataError for an uneven division."""
    micro = settings.micro_batch_size or max(1, settings.batch_size // size)
    if settings.batch_size % (micro * size):
        shared = f" for each of {size} processes" if size > 1 else ""
        raise DataError(f"batch_size {settings.batch_size} is not a multiple of micro_batch_size {micro}{shared}")
    return micro, settings.batch_size // (micro * size)


def _encode(chat: ChatFormat, samples: list[Pair], limit: int) -> tuple[list[Row], int]:
    """Rows for the trainer. A sample that is too long loses its oldest exchanges, then the end of its answer."""
    rows, shortened = [], 0
    for pair in samples:
        for history in shorter_histories(pair.history):
            encoded = chat.encode_pair(history, pair.answer, ended=pair.ended)
            if len(encoded.input_ids) <= limit:
                break
        cut = len(history) < len(pair.history) or len(encoded.input_ids) > limit
        encoded = Encoded(encoded.input_ids[:limit], encoded.completion_mask[:limit])
        shortened += cut
        if any(encoded.completion_mask):
            rows.append({"input_ids": encoded.input_ids, "completion_mask": encoded.completion_mask})
    return rows, shortened


def _resume(run: Run, how: Resume, described: dict[str, Any]) -> Checkpoint | None:
    """Record model and data, and find where a killed run stopped; what it logged after that is dropped."""
    run.update(**described)
    found = newest_usable(_finished_checkpoints(run.path / "checkpoints"), resume=how, needed=_NEEDED)
    if found is not None and found.damaged:
        run.update(inexact_resume=found.step)
    run.forget_after(found.step if found else 0)
    return found


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
