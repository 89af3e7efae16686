"""Small scored runs whose answers have labels, for the tests of this folder and the browser's."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "measuring"))

from measured_runs import build_run

from rewardlm.stats import FloatArray


def scored(
    path: Path, label: str, *, prompts: int = 20, samples: int = 3, seed: int = 0, share: float = 0.3
) -> tuple[Path, FloatArray]:
    """A run whose judges ``a`` and ``b`` are often right; and what people would say, Float[prompts * samples]."""
    rng = np.random.default_rng(seed)
    truth = (rng.random((prompts, samples)) < share).astype(float)
    judges = {
        name: np.clip(0.2 + 0.5 * truth + 0.15 * rng.standard_normal(truth.shape), 0, 1).tolist() for name in ("a", "b")
    }
    path = build_run(
        path, label, judges, texts=[[f"{label} says {i}, {j}" for j in range(samples)] for i in range(prompts)],
        toxicity=[0.9 if i % 2 else 0.1 for i in range(prompts)],
        scorers=[{"name": name, "labels": ["toxic"]} for name in judges], model="m", model_hash="h",
    )  # fmt: skip
    return path, truth.ravel()
