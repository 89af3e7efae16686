"""Who answers: this process, a server, or workers on a cluster. The meter asks all of them the same way.

An engine is given a window of questions at a time and yields answers as they come, in any order. Every question has
its own seed. So, except for rounding, an answer doesn't depend on which engine, window or worker it came from. Whoever
runs a window forms the same batches, so its records are the same, bit for bit.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from rewardlm.config import MeasureSettings
from rewardlm.errors import ConfigError
from rewardlm.models.budget import Budget
from rewardlm.models.generate import Request, Sampled, stream_seed
from rewardlm.models.load import Policy, load_policy
from rewardlm.models.logprobs import check_head
from rewardlm.models.lora import load_adapter, set_strength
from rewardlm.models.processes import Processes
from rewardlm.runs import TRAININGS, training_of
from rewardlm.scoring.scorer import Scorer, score_texts
from rewardlm.steering.folder import SteerFolder, read_steer_folder, refuse_other_model
from rewardlm.steering.load import load_steering
from rewardlm.steering.record import refuse_strength
from rewardlm.steering.steered import Drawing, Steered, Steering, Unsteered
from rewardlm.types import Finish, Generation, Prompt, Verdict

# Questions in a window; within one, those of similar length share a batch.
WINDOW = 256


@dataclass(frozen=True, slots=True)
class Question:
    """One answer that is wanted: sample ``sample`` of ``prompt``, drawn by ``seed``."""

    prompt: Prompt
    sample: int
    seed: int

    @property
    def id(self) -> str:
        return f"{self.prompt.id}#{self.sample}"

    def answered(
        self, model: str, text: str, n_tokens: int, finish: Finish | None, tokens: Sequence[int] | None = None
    ) -> Generation:
        """The record of its answer; ``tokens`` are the sampled ids, where they are known."""
        return Generation(
            id=self.id,
            prompt_id=self.prompt.id,
            model=model,
            sample=self.sample,
            text=text,
            n_tokens=n_tokens,
            finish=finish,
            seed=self.seed,
            tokens=None if tokens is None else tuple(tokens),
        )


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """A question that an engine could not answer; ``final`` where asking again would not help."""

    id: str
    reason: str
    final: bool


class Engine(Protocol):
    """Answers windows of questions; ``known`` are indices of questions in the window that are answered already."""

    def describe(self) -> dict[str, Any]:
        """What a run records of the model, as JSON can hold it; keys are ``Policy.describe``'s, where they apply."""
        ...

    def answers(self, window: Sequence[Question], known: Set[int]) -> Iterator[Generation | NoAnswer]: ...


def questions(prompts: Iterable[Prompt], settings: MeasureSettings) -> Iterator[Question]:
    """All questions, prompt by prompt; those to one prompt in the order of its samples."""
    for prompt in prompts:
        for sample in range(settings.samples):
            yield Question(prompt, sample, stream_seed("measure", settings.seed, prompt.id, sample))


def windows(asked: Iterable[Question]) -> Iterator[list[Question]]:
    """``WINDOW`` questions at a time."""
    stream = iter(asked)
    while window := list(islice(stream, WINDOW)):
        yield window


class LocalEngine:
    """The model in this process, its adapter merged while it answers, and steered if the settings say so.

    Raises ModelError if a steer folder was fitted on another model, and ConfigError for a strength that means nothing
    to its method.
    """

    def __init__(self, settings: MeasureSettings, label: str, policy: Policy) -> None:
        self._settings, self._label = settings, label
        self.policy = policy
        self.folder = None if settings.steer is None else read_steer_folder(settings.steer)
        self._steering: Steering = Unsteered()
        if self.folder is not None:
            whole = settings.adapter_strength in (None, 1)
            refuse_other_model(self.folder, settings.steer, policy, adapter_hash(settings) if whole else None)
            self._steering = load_steering(self.folder, settings.services)
        self.strength = self._steering.strength if settings.strength is None else settings.strength
        refuse_strength(self._steering.method, self.strength, settings.generation)
        self._steered: Steered | None = None
        self.cost = Cost()
        self.prompt_tokens = policy.max_positions - settings.max_new_tokens
        if self.prompt_tokens < 1:
            raise ConfigError(
                f"max_new_tokens {settings.max_new_tokens} leaves no room for a prompt in {policy.max_positions} "
                "positions: make it smaller"
            )
        self.budget = Budget(settings.batch_tokens, "batch_tokens")
        # Prompts that lost the beginning of their history.
        self.truncated = 0

    def describe(self) -> dict[str, Any]:
        return {
            **self.policy.describe(),
            "adapter_hash": adapter_hash(self._settings),
            "adapter_strength": self._settings.adapter_strength,
            "treatment": None if self.folder is None else self.folder.treatment(self.strength),
        }

    @contextlib.contextmanager
    def ready(self) -> Iterator[LocalEngine]:
        """Inside, the model can answer. Its adapter is merged where it can be, which halves the time of an answer."""
        if self._steered is not None:
            yield self
            return
        with self._steering.on(self.policy) as steered:
            self._steered = steered
            try:
                yield self
            finally:
                self._steered = None

    def answers(self, window: Sequence[Question], known: Set[int]) -> Iterator[Generation]:
        assert self._steered is not None, "an engine answers inside of its ready()"
        steered, chat = self._steered, self.policy.chat
        by_prompt: dict[str, Request] = {}
        for question in window:
            if question.prompt.id not in by_prompt:
                asked, cut = steered.request(question.prompt.turns, 0, self.strength, self.prompt_tokens)
                by_prompt[question.prompt.id] = asked
                # A prompt's samples may lie in two windows: count it once.
                self.truncated += cut > 0 and question.sample == 0
        requests = [replace(by_prompt[question.prompt.id], seed=question.seed) for question in window]
        drawing = Drawing(self._settings.max_new_tokens, self._settings.generation, self.budget)
        for answer in self.cost.timed(steered.answers(requests, drawing, known), steered):
            if answer.index not in known:
                yield window[answer.index].answered(
                    self._label, chat.decode(answer.tokens), len(answer.tokens), answer.finish, answer.tokens
                )


@dataclass
class Cost:
    """What answers took so far: seconds, their tokens, and the tokens that the model read to draw them (``passes``)."""

    seconds: float = 0.0
    tokens: int = 0
    passes: int = 0

    def timed(self, answers: Iterator[Sampled], steered: Steered) -> Iterator[Sampled]:
        """``answers`` as they come. Only the time in which they are made counts, not what is done with them."""
        before = steered.read
        while True:
            start = time.perf_counter()
            answer = next(answers, None)
            self.seconds += time.perf_counter() - start
            self.passes += steered.read - before
            before = steered.read
            if answer is None:
                return
            self.tokens += len(answer.tokens)
            yield answer


@dataclass(frozen=True, slots=True)
class JudgedWindow:
    """A window's answers, and the verdicts of each judge on them, in the settings' order of judges."""

    start: int
    generations: list[Generation]
    verdicts: list[list[Verdict]]
    truncated: int


def judged_window(
    settings: MeasureSettings,
    engine: LocalEngine,
    scorers: Sequence[Scorer],
    prompts: Sequence[Prompt],
    start: int,
) -> JudgedWindow:
    """The window that begins at the question numbered ``start``."""
    before = engine.truncated
    samples = settings.samples
    around = prompts[start // samples : (start + WINDOW) // samples + 1]
    first = start - start // samples * samples
    window = list(islice(questions(around, settings), first, first + WINDOW))
    generations = list(engine.answers(window, frozenset()))
    texts = [generation.text for generation in generations]
    verdicts = [score_texts(scorer, texts) for scorer in scorers]
    return JudgedWindow(start, generations, verdicts, engine.truncated - before)


def judged_by_processes(
    settings: MeasureSettings,
    engine: LocalEngine,
    scorers: Sequence[Scorer],
    prompts: Sequence[Prompt],
    starts: Sequence[int],
    processes: Processes,
) -> Iterator[JudgedWindow]:
    """The windows that begin at ``starts``, in their order. In each round, every process does one window and all get
    the results of all. An error in one is raised in all.
    """

    def judged(these: Sequence[int]) -> list[JudgedWindow]:
        return [judged_window(settings, engine, scorers, prompts, start) for start in these]

    for first in range(0, len(starts), processes.size):
        mine = processes.share(starts[first : first + processes.size])
        yield from processes.gather(partial(judged, mine))


def load_model(settings: MeasureSettings) -> Policy:
    """The model with its adapter. Raises ModelError as its loaders do."""
    policy = load_policy(settings)
    check_head(policy.causal_lm)
    if settings.adapter is not None:
        load_adapter(policy, settings.adapter)
        if settings.adapter_strength is not None:
            set_strength(policy, settings.adapter_strength)
        _say_if_trained_on_another_base(policy, settings.adapter)
    return policy


def _say_if_trained_on_another_base(policy: Policy, adapter: Path) -> None:
    """Warn if the adapter was trained on a base in another precision.

    It learnt to make up for what quantisation takes from its base: on another base, this is another model.
    """
    training = training_of(adapter)
    if training is None or training.meta.get("kind") not in TRAININGS:
        return
    trained_on = training.meta["settings"].get("load")
    if trained_on != policy.quantisation:
        held, better = policy.quantisation or "full precision", f"--load {trained_on}" if trained_on else "no --load"
        warnings.warn(
            f"the adapter {adapter} was trained on a base in {trained_on or 'full precision'}, but answers here on one "
            f"in {held}: measure it with {better} to get what was trained",
            stacklevel=2,
        )


def steer_folder(settings: MeasureSettings) -> SteerFolder | None:
    """The steer folder that the settings name; None without one, or if it is no longer there."""
    if settings.steer is None or not settings.steer.exists():
        return None
    return read_steer_folder(settings.steer)


def adapter_hash(settings: MeasureSettings) -> str | None:
    """SHA-256 of the adapter's weights; None without an adapter, or if it is no longer there."""
    for folder in (settings.adapter, settings.adapter / "adapter") if settings.adapter is not None else ():
        weights = folder / "adapter_model.safetensors"
        if weights.exists():
            return hashlib.sha256(weights.read_bytes()).hexdigest()
    return None
