"""Preference training: judges compare the model's own answers, and TRL's trainers learn to prefer the better ones.

In each round the model answers prompts several times, judges say what each answer is worth, and answers to the same
prompt become pairs (``preferences``). DPO and KTO learn from them how to prefer one to the other, best-of-n fine-tuning
(raft) learns the best ones. Later rounds draw from the model as it then is, from other prompts; the reference stays
what it was. Each round is a training of its own, with a fresh optimizer and its own schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from transformers.trainer_callback import PrinterCallback
from trl import DPOConfig, KTOConfig, SFTConfig

from rewardlm import fastpath
from rewardlm.config import PreferSettings
from rewardlm.errors import DataError, DiskFullError, RewardLMError
from rewardlm.models.budget import Budget
from rewardlm.models.load import Policy, resolve_device
from rewardlm.models.logprobs import check_head
from rewardlm.models.lora import add_lora, load_adapter, replace_adapter, restore_adapter
from rewardlm.models.processes import Processes, linked, writing
from rewardlm.models.sharding import load_for
from rewardlm.progress import ProgressCallback
from rewardlm.runs import Run
from rewardlm.training.drawn import DrawnAnswers
from rewardlm.training.judged_run import ask_prompts, load_rewards, stop_noted
from rewardlm.training.prefer_rows import PreferenceTokens, answer_rows, best_rows, pair_rows
from rewardlm.training.prefer_run import (
    ResumePoint,
    check_file,
    checkpoints_of,
    drop_older_rounds,
    end_of_round,
    resume,
    start_run,
    steps_before,
)
from rewardlm.training.prefer_source import DrawnPairs, GivenPairs, Lines
from rewardlm.training.prefer_trainer import PAIR_METRICS, AnswerTrainer, PairTrainer, our_pass
from rewardlm.training.retain import RetainCallback, Retained, retained
from rewardlm.training.sft_pass import why_plain
from rewardlm.training.sft_trainer import Trainer
from rewardlm.training.trackers import Trackers, check_installed
from rewardlm.training.trl_parts import SFT_METRICS, InOrder, RunCallback, arguments, kept_in_float32


def prefer(
    settings: PreferSettings,
    out: Path,
    *,
    report: ProgressCallback | None = None,
    say: Callable[[str], None] | None = None,
) -> Run:
    """Train an adapter in ``out`` and return its run; a finished run is returned as it is, a killed one goes on.

    ``report`` is called while answers are drawn, and with a step's metrics after each; ``say`` gets a sentence on each
    round's pairs. Raises ScorerError for a judge that has the wrong sign or fails too often, DataError where no answer
    or pair can be learnt, TrainingError for NaN, for what ``stop_on`` names and where no checkpoint can be resumed, and
    RunError where another command writes ``out``.
    """
    with writing(out, settings.device) as processes:
        return _prefer(settings, out, processes, report, processes.voice(say))


def _prefer(
    settings: PreferSettings,
    out: Path,
    processes: Processes,
    report: ProgressCallback | None,
    say: Callable[[str], None],
) -> Run:
    run = processes.first(lambda: start_run(settings, out))
    if run.finished:
        check_file(run, settings.preferences)
        return run

    # 1. The judges; the policy with its adapter; prompts, or preferences from a file; where a killed run stopped.
    training = _setup(settings, run, processes, report, say)
    with training.trackers, stop_noted(run, processes):
        for round_number in range(training.place.round_number, settings.rounds):
            with _left_behind(training, round_number):
                # 2. Answers from the model as it is, judged; the pairs among them.
                examples, lines = training.source.examples(round_number)
                # 3. TRL's trainer learns them.
                _learn(training, round_number, examples, lines)
            processes.first(lambda: drop_older_rounds(run, round_number))  # noqa: B023 (called at once)
        # 4. Answers of the trained model, judged: the rounds looked at it only before they changed it.
        with _left_behind(training, settings.rounds):
            training.source.look_at_trained()

    # 5. The adapter, where every other command looks for it.
    def end() -> Run:
        replace_adapter(training.policy.model, run.adapter)
        losses = [record["loss"] for record in run.read("metrics")]
        run.update(status="finished", steps=settings.steps, first_loss=losses[0], last_loss=losses[-1])
        return run

    return processes.first(end)


@dataclass(frozen=True, slots=True)
class PreferTraining:
    """The parts of a training, which its rounds share."""

    settings: PreferSettings
    run: Run
    processes: Processes
    policy: Policy
    source: DrawnPairs | GivenPairs
    held: Retained | None
    place: ResumePoint
    trackers: Trackers
    report: ProgressCallback | None
    say: Callable[[str], None]


def _setup(
    settings: PreferSettings,
    run: Run,
    processes: Processes,
    report: ProgressCallback | None,
    say: Callable[[str], None],
) -> PreferTraining:
    """Everything that the rounds need, loaded and checked, in the state that a killed run left."""
    device = processes.device or str(resolve_device(settings.device))
    check_installed(settings.trackers)
    _microbatches(settings, processes.size)  # refuses an uneven division before anything is loaded
    rewards = None
    if settings.draws:
        rewards = load_rewards(settings, device)
        rewards.check_sign()
    policy, _ = load_for(settings, processes, lambda policy: _put_on(settings, policy))
    check_head(policy.causal_lm)
    if settings.lora.dropout and settings.method != "raft":
        say("lora.dropout is left out: the reference must be the model that the adapter was put on")
    source: DrawnPairs | GivenPairs
    if rewards is not None:
        asked = ask_prompts(settings, run, policy, rewards, processes)
        if asked.note is not None:
            say(asked.note)
        answers = DrawnAnswers(settings, run, policy, rewards, asked.prompts, asked.ids, processes)
        source = DrawnPairs(settings, run, processes, asked.prompts, asked.ids, answers, report, say)
    else:
        source = GivenPairs(settings, run, processes, policy, say)
    held = retained(policy, settings, run, processes, say)
    place = resume(run, settings, processes)
    if place.checkpoint is not None:
        restore_adapter(place.checkpoint.folder, policy.model)
    trackers = Trackers(settings.trackers if processes.is_main else [], run, cpu=device.startswith("cpu"))
    return PreferTraining(settings, run, processes, policy, source, held, place, trackers, report, say)


@contextmanager
def _left_behind(training: PreferTraining, round_number: int) -> Iterator[None]:
    """Inside, what ends the training leaves the adapter of the rounds before where other commands look for it."""
    try:
        yield
    except (RewardLMError, KeyboardInterrupt) as error:
        kept = training.processes.is_main and round_number > 0 and _put_back(training, round_number - 1)
        if kept and isinstance(error, RewardLMError):
            error.args = (f"{error} (the adapter of the rounds before is kept in {training.run.adapter})",)
        raise


def _put_back(training: PreferTraining, round_number: int) -> bool:
    """Leave the adapter as it was when that round ended, by its checkpoint: the model itself may have gone on since.
    Returns whether it could be done.
    """
    policy, run = training.policy, training.run
    found = end_of_round(run, training.settings, round_number)
    if found is None:
        return False
    # On a disk that is full, what stopped the training says more.
    with suppress(DiskFullError):
        restore_adapter(found, policy.model)
        replace_adapter(policy.model, run.adapter)
        return True
    return False


def _learn(training: PreferTraining, round_number: int, examples: Sequence[PreferenceTokens], lines: Lines) -> None:
    """One round: its rows, TRL's trainer for the method, and its steps."""
    settings, policy, place = training.settings, training.policy, training.place
    disable_progress_bar()
    policy.tokenizer.pad_token = policy.tokenizer.pad_token or policy.tokenizer.eos_token
    if settings.method == "dpo":
        rows = pair_rows(policy, examples, settings, round_number)
    elif settings.method == "kto":
        rows = answer_rows(policy, examples, settings, round_number)
    else:
        rows = best_rows(examples, settings, round_number)
    with kept_in_float32(policy.model):
        trainer = _trainer(training, round_number, rows, lines)
    trainer.remove_callback(PrinterCallback)  # Progress is reported by us; its printing would break the bar.
    trainer.order = InOrder(len(rows))
    goes_on = place.checkpoint if place.round_number == round_number and place.steps else None
    trainer.afresh = goes_on is not None and bool(goes_on.damaged)
    fast = _runs_fast(training)
    with ExitStack() as inside:
        if isinstance(trainer, Trainer):
            trainer.fast = fast and training.processes.size == 1
        else:
            trainer.reference_is_known()
            inside.enter_context(our_pass(policy.causal_lm, fast=fast))
        inside.enter_context(linked())
        trainer.train(resume_from_checkpoint=str(goes_on.folder) if goes_on is not None else None)
    policy.model.eval()


def _trainer(training: PreferTraining, round_number: int, rows: list[dict[str, Any]], lines: Lines) -> Any:
    """TRL's trainer for the method; nothing is trained yet."""
    settings, policy, processes = training.settings, training.policy, training.processes
    micro, n_micro = _microbatches(settings, processes.size)
    budget = Budget(micro, "micro_batch_size", again=processes.size == 1)
    folder = checkpoints_of(training.run, round_number)
    given = {
        **arguments(settings, folder, learning_rate=settings.rate, micro=micro, n_micro=n_micro, device=policy.device),
        "max_steps": settings.steps_of(round_number),
        "max_grad_norm": settings.max_grad_norm,
    }
    before = steps_before(settings, round_number)
    retaining = RetainCallback(training.held, before)

    def of_step(step: int) -> Mapping[str, Any]:
        return {**lines.of_step(step), **retaining.of_step(step)}

    callback = RunCallback(
        training.run,
        training.report,
        processes,
        budget,
        names=SFT_METRICS if settings.method == "raft" else PAIR_METRICS,
        before=before,
        steps=settings.steps,
        more=of_step,
        track=training.trackers.log,
    )
    parts = {
        "model": policy.model,
        "processing_class": policy.tokenizer,
        "train_dataset": Dataset.from_list(rows),
        "callbacks": [callback, retaining],
    }
    if settings.method == "dpo":
        losses = [settings.loss_type, "sft"] if settings.sft_weight else [settings.loss_type]
        weights = [1.0, settings.sft_weight] if settings.sft_weight else [1.0]
        smoothing = settings.label_smoothing
        return PairTrainer(
            args=DPOConfig(
                **given, beta=settings.beta, loss_type=losses, loss_weights=weights, label_smoothing=smoothing
            ),
            **parts,
        )
    if settings.method == "kto":
        # Each answer's neighbour is in its row already.
        return AnswerTrainer(args=KTOConfig(**given, beta=settings.beta, train_sampling_strategy="sequential"), **parts)
    trainer = Trainer(args=SFTConfig(**given, completion_only_loss=True, packing=False), **parts)
    trainer.processes, trainer.budget = processes, budget
    return trainer


def _runs_fast(training: PreferTraining) -> bool:
    """Whether RL's pass computes the losses instead of TRL's own; ``say`` gets the reason if that costs time."""
    settings, policy = training.settings, training.policy
    reason: str | None = "the base is divided between processes"
    if not settings.shard:
        reason = why_plain(policy.model, policy.device, recompute=settings.gradient_checkpointing)
    if reason is not None and fastpath.is_open() and policy.device.type == "cpu":
        training.say(f"{settings.method} runs the model by TRL's own pass, which is slower: {reason}")
    return reason is None


def _put_on(settings: PreferSettings, policy: Policy) -> None:
    if settings.adapter is None:
        add_lora(policy, settings.lora, seed=settings.seed)
    else:
        load_adapter(policy, settings.adapter, trainable=True)
    policy.model.eval()


def _microbatches(settings: PreferSettings, size: int) -> tuple[int, int]:
    """How many rows a process runs at once, and how often for a step. Raises DataError for an uneven division."""
    micro = settings.micro_batch
    if settings.batch_size % (micro * size):
        shared = f" for each of {size} processes" if size > 1 else ""
        raise DataError(f"batch_size {settings.batch_size} is not a multiple of micro_batch_size {micro}{shared}")
    return micro, settings.batch_size // (micro * size)
