"""What holding a base in fewer bits costs: bytes of its weights, and how far its next-token distributions move.

    python benchmarks/quantised.py [MODEL]

Compared with the model in float32, at 256 positions of the packaged dialogues' answers. Minutes on one core.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from rewardlm.config import ModelSettings, QuantisationSettings
from rewardlm.models.load import load_policy
from rewardlm.models.merging import change_between, logits_of_answers
from rewardlm.models.quantised import weight_bytes

# dtype, --load, quantisation.…
HELD: list[tuple[str, str | None, dict[str, Any]]] = [
    ("bfloat16", None, {}),
    ("bfloat16", "8bit", {}),
    ("bfloat16", "4bit", {}),
    ("float32", "8bit", {}),
    ("float32", "8bit", {"outliers": 0.0}),
    ("float32", "4bit", {}),
    ("float32", "4bit", {"double": False}),
    ("float32", "4bit", {"kind": "fp4"}),
    ("float32", "4bit", {"compute_dtype": "bfloat16"}),
]


def main(model: str) -> None:
    """Print a row for each way of holding ``model``."""
    common: dict[str, Any] = {"model": model, "device": "cpu"}
    plain = load_policy(ModelSettings(**common, dtype="float32"))
    expected = logits_of_answers(plain)
    print(f"{model}, float32: {weight_bytes(plain.model) / 1e6:.1f} MB")
    print(f"{'dtype':10}{'load':6}{'settings':32}{'MB':>8}{'KL, nats':>10}{'likeliest changed':>19}{'CPU s':>8}")
    del plain
    for dtype, load, settings in HELD:
        quantisation = QuantisationSettings(**settings)
        policy = load_policy(ModelSettings(**common, dtype=dtype, load=load, quantisation=quantisation))
        started = time.process_time()
        change = change_between(expected, logits_of_answers(policy))
        seconds = time.process_time() - started
        shown = ", ".join(f"{name}={value}" for name, value in settings.items())
        print(
            f"{dtype:10}{load or '-':6}{shown:32}{weight_bytes(policy.model) / 1e6:8.1f}{change['kl']:10.4f}"
            f"{change['likeliest_token_changed']:19.1%}{seconds:8.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m")
