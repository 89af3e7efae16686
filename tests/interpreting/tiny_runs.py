"""Measured runs of tiny and of two adapters on it, made through the meter, with scores that the tests choose."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from small_models import tiny_policy

from rewardlm.config import GenerationSettings, LoraSettings, MeasureSettings
from rewardlm.measuring.meter import measure
from rewardlm.models.lora import add_lora, save_adapter
from rewardlm.runs import Run

LABELS = ("PT", "FT", "RL")
N_PROMPTS = 10


def write_adapter(folder: Path, seed: int, size: float = 0.1) -> Path:
    """An adapter on tiny, as training would leave it."""
    policy = tiny_policy()
    add_lora(policy, LoraSettings(r=4), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * size)
    save_adapter(policy.model, folder)
    return folder


def measured_tiny_runs(
    folder: Path,
    *,
    labels: Sequence[str] = LABELS,
    prompts: int = N_PROMPTS,
    size: float = 0.1,
    **generation: float,
) -> list[Path]:
    """PT, FT and RL, with two answers a prompt."""
    runs = []
    for seed, label in enumerate(labels):
        adapter = None if label == "PT" else write_adapter(folder / f"adapter-{label}", seed, size)
        settings = MeasureSettings(
            model="tiny",
            adapter=adapter,
            dtype="float32",
            device="cpu",
            scorer=["lexical"],
            label=label,
            limit=prompts,
            samples=2,
            max_new_tokens=12,
            similarity=False,
            perplexity=False,
            counter_narrative=None,
            generation=GenerationSettings.model_validate(generation),
        )
        measure(settings, folder / label)
        runs.append(folder / label)
    return runs


def rescore(run: Path, value_of: Callable[[int], float]) -> None:
    """Give the k-th answer of a run the score ``value_of(k)``."""
    records = [json.loads(line) for line in (run / "generations.jsonl").read_text().splitlines()]
    scores = [
        {"generation_id": record["id"], "scorer": "lexical", "label": "toxic", "value": value_of(k), "reason": None}
        for k, record in enumerate(sorted(records, key=lambda record: record["id"]))
    ]
    Run.open(run).replace("scores", scores)
