"""How much memory a command will take, found before it starts, and which settings fit this device.

A command's peak is the larger of two: reading the weights, and the worst moment of its work on top of them. What the
model's work takes is traced (models.memory); what the process itself and its judges take is measured here and now,
because it is the same for every model.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import psutil
import torch

from rewardlm import fastpath
from rewardlm.config import FinetuneSettings, LoraSettings, MeasureSettings, PreferSettings, RlafSettings
from rewardlm.measuring.model_quality import READ_TOGETHER
from rewardlm.models import memory
from rewardlm.models.layers import by_layers
from rewardlm.models.load import resolve_dtype
from rewardlm.models.logprobs import body_and_head
from rewardlm.training.prefer_rows import ASKED_TOGETHER
from rewardlm.training.sft_pass import POSITIONS, why_plain

Command = Literal["measure", "finetune", "rlaf", "prefer"]
COMMANDS: tuple[Command, ...] = ("measure", "finetune", "rlaf", "prefer")
QUANTISED = ("8bit", "4bit")
_MANY = 256  # rows; with so many, nearly all of the memory is what grows with them


@dataclass(frozen=True)
class Work:
    """The work of a command: rows of ``tokens`` (prompt and answer), of which ``new`` are the answer's.

    Of ``answers`` rows in all, ``slots`` are generated side by side. ``rows`` make a microbatch of training;
    ``recompute`` is gradient checkpointing. ``merging``: an adapter is merged while answers are drawn, as always in RL.
    """

    tokens: int
    new: int
    slots: int
    rows: int
    answers: int = 1_000_000
    recompute: bool = False
    merging: bool = False
    lora: LoraSettings = field(default_factory=LoraSettings)


@dataclass(frozen=True)
class Need:
    """Bytes for the ``process`` with its libraries and judges, the ``weights``, the ``adapter`` with its optimizer, and
    the ``work``; ``loading`` is what reading the weights takes on top of them.
    """

    process: int
    weights: int
    loading: int
    adapter: int
    work: int

    @property
    def total(self) -> int:
        return self.process + self.weights + max(self.loading, self.adapter + self.work)

    def as_dict(self) -> dict[str, int]:
        return {**asdict(self), "total": self.total}


class Traces:
    """How much memory work takes with one model in one precision; each case is traced once. ``load``: 8bit or 4bit."""

    def __init__(self, spec: str, dtype: torch.dtype, load: str | None = None) -> None:
        self.spec, self.dtype, self.load = spec, dtype, load
        self.bare = memory.skeleton(spec, dtype, load)
        self._adapted: dict[str, memory.Skeleton] = {}
        self._known: dict[tuple[Any, ...], int] = {}

    def adapted(self, lora: LoraSettings) -> memory.Skeleton:
        """The model's skeleton with an adapter."""
        key = lora.model_dump_json()
        if key not in self._adapted:
            self._adapted[key] = memory.adapted(self.spec, self.dtype, lora, self.load)
        return self._adapted[key]

    def generating(self, work: Work) -> int:
        return self._once(memory.generating_bytes, self.bare, work.slots, work.tokens - work.new, work.new)

    def scoring(self, work: Work, *, compared: bool) -> int:
        return self._once(memory.scoring_bytes, self.bare, work.rows, work.tokens, work.new, compared=compared)

    def updating(self, work: Work) -> int:
        with_adapter = self.adapted(work.lora)
        how = {"recompute": work.recompute}
        return self._once(memory.updating_bytes, with_adapter, work.rows, work.tokens, work.new, **how)

    def finetuning(self, work: Work, *, kernels: bool) -> int:
        with_adapter = self.adapted(work.lora)
        how = {"recompute": work.recompute, "kernels": kernels}
        return self._once(memory.finetuning_bytes, with_adapter, work.rows, work.tokens, **how)

    def _once(self, trace: Callable[..., int], of: memory.Skeleton, *sizes: int, **how: bool) -> int:
        key = (trace, id(of), sizes, *how.items())
        if key not in self._known:
            self._known[key] = by_layers(trace, of, *sizes, **how)
        return self._known[key]


class Planner:
    """Needs of one model at one ``precision`` (a dtype, ``8bit`` or ``4bit``) on ``device``.

    A quantised model computes in the precision that is fast on the device. ``process`` are bytes by command.
    """

    def __init__(self, precision: str, traces: Traces, device: torch.device, process: Mapping[Command, int]) -> None:
        self.precision, self.traces, self.device, self.process = precision, traces, device, process
        self.weights = round(memory.weight_bytes(traces.bare.causal_lm, traces.load))

    @property
    def cache_position(self) -> int | None:
        """Bytes of KV cache per position; None for a model that keeps something else."""
        return memory.cache_bytes(self.traces.bare)

    def need(self, command: Command, work: Work) -> Need:
        """What ``command`` takes at its worst moment."""
        traces, adapter = self.traces, 0
        if command == "measure":
            # For their perplexity the answers are read again, without the adapter.
            read = replace(work, rows=max(1, min(work.answers, READ_TOGETHER // work.tokens)))
            most = max(traces.generating(work) + self._merged(work), traces.scoring(read, compared=False))
        else:
            # Its weights, and Adam's two moments; the gradient is a part of the work.
            adapter = 3 * memory.adapter_bytes(traces.adapted(work.lora))
        if command == "finetune":
            most = self._finetuning(work)
        if command in ("rlaf", "prefer"):
            generating = traces.generating(work) + self._merged(replace(work, merging=True))
            if command == "rlaf":
                most = max(generating, traces.scoring(work, compared=True), traces.updating(work))
            else:
                asked = replace(work, rows=max(1, ASKED_TOGETHER // work.tokens))
                most = max(generating, traces.scoring(asked, compared=False), self._preferring(work))
        return Need(self.process[command], self.weights, self._loading(), adapter, most)

    def largest(self, command: Command, work: Work, capacity: int) -> int:
        """How many rows fit into ``capacity`` bytes: side by side for measure, in a microbatch for the others; 0 if not
        even one does. A number up to ``_MANY`` was traced and fits, and is too small by at most an eighth or so. Beyond
        that, memory is taken to grow along a straight line.
        """

        def total(rows: int) -> int:
            more = replace(work, slots=rows) if command == "measure" else replace(work, rows=rows)
            return self.need(command, more).total

        low, high = 1, _MANY
        usual = work.slots if command == "measure" else work.rows
        if usual < _MANY:
            low, high = (usual, _MANY) if total(usual) <= capacity else (1, usual)
        if low == 1 and total(1) > capacity:
            return 0
        if total(high) <= capacity:
            a_row = (total(high) - total(high // 2)) // (high - high // 2)
            # Work that runs in pieces of one size takes no more memory for more rows.
            return high + (capacity - total(high)) // a_row if a_row > 0 else high
        for attempt in range(6):
            if high - low <= max(1, low // 8):
                break
            # By turns a point on the line between the two, and the middle, in case the growth has a bend.
            on_line = (capacity - total(low)) * (high - low) // max(1, total(high) - total(low))
            middle = low + (on_line if attempt % 2 == 0 else (high - low) // 2)
            middle = min(max(middle, low + 1), high - 1)
            low, high = (middle, high) if total(middle) <= capacity else (low, middle)
        return low

    def _finetuning(self, work: Work) -> int:
        """A microbatch in TRL's own pass, or the largest piece of it in the pass that RL uses."""
        traces = self.traces
        if why_plain(traces.adapted(work.lora).model, self.device, recompute=work.recompute) is not None:
            return traces.finetuning(work, kernels=self.device.type == "cuda")
        return traces.updating(replace(work, rows=min(work.rows, max(1, POSITIONS // work.tokens))))

    def _preferring(self, work: Work) -> int:
        """A microbatch of pairs in TRL's own pass, or in the one that RL uses, which reads a prompt once for both."""
        traces = self.traces
        if why_plain(traces.adapted(work.lora).model, self.device, recompute=work.recompute) is not None:
            return traces.finetuning(replace(work, rows=2 * work.rows), kernels=self.device.type == "cuda")
        return traces.updating(replace(work, tokens=work.tokens + work.new, new=2 * work.new))

    def _merged(self, work: Work) -> int:
        if self.traces.load is not None:
            return 0
        # Without an adapter nothing is merged, but the fast path may copy the weights all the same.
        model = self.traces.adapted(work.lora)
        copies = work.merging or fastpath.copies_weights(body_and_head(model.causal_lm)[0])
        return memory.copied_bytes(model) if copies else 0

    def _loading(self) -> int:
        """On a CPU the file stays in memory until all of it is converted, in pages that the system can reclaim."""
        bare = self.traces.bare
        converted = self.traces.load is not None or bare.stored != bare.dtype
        if self.device.type != "cpu" or not converted:
            return 0
        return round(memory.weight_bytes(bare.causal_lm) * bare.stored.itemsize / bare.dtype.itemsize)


def planners(
    spec: str, precisions: Sequence[str], device: torch.device, process: Mapping[Command, int]
) -> list[Planner]:
    """One for each of ``precisions``. Raises ModelError where ``spec`` has no configuration."""
    held = [
        (resolve_dtype("auto", device), name) if name in QUANTISED else (resolve_dtype(name, device), None)
        for name in precisions
    ]
    traces = {how: Traces(spec, *how) for how in dict.fromkeys(held)}
    return [Planner(name, traces[how], device, process) for name, how in zip(precisions, held, strict=True)]


@dataclass(frozen=True)
class Line:
    """A command at one precision: what its default ``setting`` needs, and the largest value that fits (0: none)."""

    precision: str
    command: Command
    recompute: bool
    need: Need
    setting: str
    value: int
    largest: int

    @property
    def fits(self) -> bool:
        return self.largest >= self.value


# For each precision: measuring, and the three trainings as they are and with gradient checkpointing.
LINES = 7


def lines(planner: Planner, tokens: int, new: int, lora: LoraSettings, capacity: int) -> Iterator[Line]:
    """Every command with its default settings, and the trainings with gradient checkpointing too."""
    for command in COMMANDS:
        for recompute in (False,) if command == "measure" else (False, True):
            work = replace(default_work(command, tokens, new), recompute=recompute, lora=lora)
            rows = work.slots if command == "measure" else work.rows
            setting, value = setting_of(command, rows, tokens)
            _, largest = setting_of(command, planner.largest(command, work, capacity), tokens)
            yield Line(planner.precision, command, recompute, planner.need(command, work), setting, value, largest)


def advice(found: Sequence[Line]) -> dict[Command, str]:
    """For each command the first of ``found`` that fits; if none does at its default, the first that fits smaller."""
    advised: dict[Command, str] = {}
    for command in COMMANDS:
        mine = [line for line in found if line.command == command]
        best = next((line for line in mine if line.fits), None) or next((line for line in mine if line.largest), None)
        if best is None:
            advised[command] = "does not fit, whatever the setting"
            continue
        words = [f"--load {best.precision}" if best.precision in QUANTISED else f"--dtype {best.precision}"]
        words += [] if best.fits else [f"{best.setting}={best.largest}"]
        words += ["gradient_checkpointing=true"] if best.recompute else []
        advised[command] = " ".join(words)
    return advised


def default_work(command: Command, tokens: int, new: int) -> Work:
    """The work of a command's default settings; its rows have ``tokens``, of which ``new`` are the answer's."""
    measuring, finetuning, rl = MeasureSettings(model=""), FinetuneSettings(model=""), RlafSettings(model="")
    preferring = PreferSettings(model="")
    if command == "measure":
        return Work(tokens, new, slots=max(1, measuring.batch_tokens // tokens), rows=1)
    if command == "finetune":
        return Work(tokens, new, slots=1, rows=finetuning.batch_size)
    if command == "prefer":
        drawn = max(1, preferring.batch_tokens // tokens)
        return Work(tokens, new, slots=drawn, rows=preferring.micro_batch)
    return Work(
        tokens,
        new,
        slots=max(1, min(rl.batch_size, max(4096, rl.micro_batch_tokens) // tokens)),
        rows=max(1, rl.micro_batch_tokens // tokens),
    )


def setting_of(command: Command, rows: int, tokens: int) -> tuple[str, int]:
    """The setting that determines ``rows``, and its value for them."""
    if command in ("finetune", "prefer"):
        return "micro_batch_size", rows
    return ("batch_tokens" if command == "measure" else "micro_batch_tokens"), rows * tokens


def capacity_of(device: torch.device) -> int:
    """Bytes free on ``device``; on a CPU what is available without swapping, and this process's own share."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available + psutil.Process().memory_info().rss)


def process_bytes(
    device: torch.device, judges: Sequence[str] = ("starter", "witness", "lexical")
) -> dict[Command, int]:
    """Bytes that a process takes before it has a model, measured on this one: libraries, and judges where they score.

    0 on a GPU, because the libraries are in the computer's memory. Call it first, before anything else is loaded.
    """
    for module in ("measuring.meter", "training.rlaf", "training.sft", "training.prefer"):
        importlib.import_module(f"rewardlm.{module}")
    from rewardlm.measuring.similarity import load_embedder
    from rewardlm.scoring.load import is_here, load_scorer
    from rewardlm.scoring.pairs import load_pair_judge

    libraries = _resident()
    # They stay loaded until they have been measured, and have scored texts, which takes memory of its own.
    kept: list[Any] = [load_scorer(name, device=str(device)) for name in judges if is_here(name)]
    for judge in kept:
        judge.score(["You are welcome here. " * 5] * 32)
    # RL and preference training pay by the embedder and the judge of pairs too, by default.
    embedder = load_embedder()
    embedder.encode(["You are welcome here."] * 32, show_progress_bar=False)
    kept += [load_pair_judge(device=str(device)), embedder]
    scoring = _resident()
    if device.type != "cpu":
        return dict.fromkeys(COMMANDS, 0)
    return {"finetune": libraries, "rlaf": scoring, "prefer": scoring, "measure": scoring}


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)
