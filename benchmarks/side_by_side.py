"""Passes side by side, each on threads of its own, against passes in turn: ``python benchmarks/side_by_side.py``.

What ``interpret`` does so: explaining tokens of SmolLM2's answers, and testing explanations. Seconds on the clock, the
shorter of two rounds that alternate the two, on an idle machine with at least two cores.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from unittest.mock import patch

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from rewardlm.config import ModelSettings
from rewardlm.interpreting.attribution import attribute
from rewardlm.interpreting.faithfulness import Explained, faithfulness
from rewardlm.models import threads
from rewardlm.models.load import load_policy

# Rows of 60 prompt tokens and as many of an answer, which the table of attribution's cost is near to.
ROWS, PROMPT, ANSWER, POSITIONS, BUDGET = 32, 60, 60, [10, 30, 50], 512


def main() -> None:
    """Both parts, both ways."""
    model = load_policy(ModelSettings(model="smollm2-135m", dtype="float32", device="cpu")).causal_lm
    model.eval().requires_grad_(False)
    rng = np.random.default_rng(0)
    prompts, responses = (rng.integers(5, 40_000, (ROWS, length)).tolist() for length in (PROMPT, ANSWER))
    words = [(place, place + 2) for place in range(0, PROMPT + 40, 2)]
    explained = [
        Explained([*prompt, *response[:40]], response[40], words, rng.random(len(words)), seed=0)
        for prompt, response in zip(prompts[:12], responses, strict=False)
    ]
    parts: dict[str, Callable[[], object]] = {
        f"{ROWS} rows explained, three tokens each": lambda: attribute(
            model, prompts, responses, [POSITIONS] * ROWS, budget=BUDGET
        ),
        f"explanations of {len(explained)} tokens tested": lambda: list(
            threads.side_by_side(model, partial(faithfulness, model, budget=BUDGET), explained)
        ),
    }
    table = Table("part", "one after the other, s", f"side by side on {torch.get_num_threads()} threads, s", "ratio")
    for name, work in parts.items():
        best = [float("inf")] * 2
        for _ in range(2):
            for way, most in enumerate((1, threads.MOST)):
                with patch.object(threads, "MOST", most):
                    begun = time.perf_counter()
                    work()
                best[way] = min(best[way], time.perf_counter() - begun)
        table.add_row(name, *(f"{seconds:.1f}" for seconds in best), f"{best[1] / best[0]:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
