"""What both sides of a comparison are asked to do, and what they report: a job as JSON in, a report as JSON out.

A worker is a fresh process, so that its memory peak is its own. Both sides get the same folder with the model, the
same prompts in the same order, the same judge and the same sizes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Job:
    """``what``: ppo, grpo, rloo, sft, dpo, pairs or meter; ``side``: ours or peer. ``prompts`` × ``samples`` answers of
    at most ``max_new_tokens`` are a step of RL, and all that the meter asks and that pairs are made of; ``prompts``
    rows are a step of fine-tuning, ``prompts`` pairs one of DPO. The first ``warmup`` steps don't count.

    ``folder`` holds what benchmarks/prepare.py wrote, and takes what the job writes.
    """

    what: str
    side: str
    dtype: str
    folder: str
    prompts: int
    samples: int
    max_new_tokens: int
    epochs: int = 2
    minibatches: int = 2
    steps: int = 1
    warmup: int = 1
    threads: int = 2
    cpu_time: bool = False
    profile: bool = False
    lora_r: int = 16
    lora_alpha: int = 32
    learning_rate: float = 1e-5
    kl_coef: float = 0.05
    # The peer's meter: answers in a batch.
    batch_rows: int = 32
    critic: str = "full"
    # The peer's fine-tuning: ours has rows of similar length side by side, and "same" gives it the same batches.
    order: str = "same"
    # The peer's DPO: "same" gives it our microbatches and asks the reference once, as ours does; "own" has a
    # step's pairs in one microbatch, and asks in each step.
    dpo: str = "same"

    @property
    def episodes(self) -> int:
        return self.prompts * self.samples

    @property
    def updates(self) -> int:
        """Optimizer steps of one RL step."""
        return self.epochs * self.minibatches

    @property
    def micro_batch(self) -> int:
        """Pairs of DPO in memory at once, as ``rewardlm prefer`` has it by default."""
        return 4 if self.prompts % 4 == 0 else self.prompts

    @property
    def model(self) -> str:
        return str(Path(self.folder) / "model")

    @property
    def prompts_file(self) -> Path:
        return Path(self.folder) / f"prompts-{self.prompts}.jsonl"

    @property
    def rows_file(self) -> Path:
        return Path(self.folder) / f"rows-{self.prompts}.jsonl"

    @property
    def pairs_file(self) -> Path:
        return Path(self.folder) / f"pairs-{self.prompts}.jsonl"

    def pairs(self) -> list[dict[str, Any]]:
        """What preference training learns from, in the order that ours takes it: TRL's conversational format."""
        from rewardlm.training.prefer_rows import laid_out

        rows = [json.loads(line) for line in self.pairs_file.read_text().splitlines()]
        steps = self.warmup + self.steps
        return [rows[place] for place in laid_out(len(rows), steps * self.prompts, 0, 0)]

    def rows(self) -> list[dict[str, Any]]:
        """What fine-tuning learns from, in the order that ours takes it: ``input_ids`` and ``completion_mask``."""
        return [json.loads(line) for line in self.rows_file.read_text().splitlines()]

    def records(self) -> list[dict[str, Any]]:
        """The prompts: ``id``, ``prompt``, and ``ids``, their tokens under the chat template."""
        return [json.loads(line) for line in self.prompts_file.read_text().splitlines()]


@dataclass
class Told:
    """``seconds`` of each step that counts (the meter's only one), ``peak_mib`` of the whole process, ``updates``
    optimizer steps a step, ``answer_tokens`` a step; ``parts`` says what the seconds went to, by phase.

    ``losses`` are those of fine-tuning and DPO, ``pairs`` how many were found. ``lengths`` are what the limit is
    computed from, of our side alone.
    """

    seconds: list[float]
    peak_mib: float
    updates: float = 0
    answer_tokens: float = 0
    losses: list[float] = field(default_factory=list)
    pairs: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    parts: list[dict[str, float]] = field(default_factory=list)
    lengths: list[dict[str, Any]] = field(default_factory=list)
    weights: dict[str, Any] = field(default_factory=dict)
    profile: list[dict[str, Any]] = field(default_factory=list)


def finetuning(model: str, batch_size: int) -> Any:
    """The settings that decide which rows fine-tuning has, and in which order."""
    from rewardlm.config import FinetuneSettings

    return FinetuneSettings(
        model=model,
        device="cpu",
        dialogues="starter-plain",
        validation=0.0,
        batch_size=batch_size,
        epochs=1,
        checkpoint_every=10_000,
    )


def worker(sides: dict[str, Callable[[Job], Told]]) -> None:
    """Do the job in the file argv[1] by ``sides[what]``, and write the report to the file argv[2]."""
    job = Job(**json.loads(Path(sys.argv[1]).read_text()))
    if job.cpu_time:
        # Every clock of this process counts its own CPU seconds: on a machine that others use, the wall's mean nothing.
        time.perf_counter = time.process_time
    import torch

    torch.set_num_threads(job.threads)
    told = sides[job.what](job)
    Path(sys.argv[2]).write_text(json.dumps(asdict(told)))


def environment(threads: int, first: Path | None = None) -> dict[str, str]:
    """A worker's environment: ``threads`` threads, offline, and ``first`` at the front of Python's path."""
    path = [str(first)] if first is not None else []
    path += [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
