"""How fast this machine reads and multiplies at the moment: the two numbers that every limit is made of.

    python benchmarks/calibrate.py [--threads N]

Bandwidth is that of summing half a gigabyte. The rate of products is measured at the shapes of a small decoder, each
with so many different weights in turn that none stays in a cache. The limit is computed with the fastest shape's rate;
the others show how near a layer can come to it. All are medians of several repetitions.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import linear

# SmolLM2-135M: (inputs, outputs) of attention's output, keys and values, MLP up and down, head.
SHAPES = {"o": (576, 576), "kv": (576, 192), "up": (576, 1536), "down": (1536, 576), "head": (576, 49152)}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_SUMMED = 2**29  # bytes
_OUT_OF_CACHE = 64 * 2**20  # bytes
_OPERATIONS = 2e9  # about, in a timed repetition


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 32, 1024])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds instead of the clock's; with --threads 1")
    options = parser.parse_args()
    if options.cpu_time:
        time.perf_counter = time.process_time
    torch.set_num_threads(options.threads)
    print(json.dumps(calibrate(options.dtypes, options.rows, options.repeat), indent=1))


def calibrate(dtypes: list[str], rows: list[int], repeat: int) -> dict[str, Any]:
    """``bandwidth`` in bytes a second. For each dtype, ``rate`` in operations a second, and ``shapes``: the rate for
    each shape and number of rows.
    """
    report: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "bandwidth": bandwidth(repeat),
        "rate": {},
        "shapes": {},
    }
    for dtype in dtypes:
        shapes = {
            f"{count} × {name}": rate(DTYPES[dtype], count, *shape, repeat)
            for name, shape in SHAPES.items()
            for count in rows
        }
        report["shapes"][dtype] = shapes
        report["rate"][dtype] = max(shapes.values())
    return report


def bandwidth(repeat: int) -> float:
    """Bytes a second of reading a tensor that fits no cache."""
    tensor = torch.ones(_SUMMED // 4)
    return _SUMMED / median_seconds(tensor.sum, repeat)


@torch.inference_mode()
def rate(dtype: torch.dtype, rows: int, inputs: int, outputs: int, repeat: int) -> float:
    """Operations a second of [rows, inputs] times [inputs, outputs], another matrix every time."""
    each = inputs * outputs
    copies = max(1, round(_OUT_OF_CACHE / (each * dtype.itemsize)))
    weights = [torch.full((outputs, inputs), 0.01, dtype=dtype) for _ in range(copies)]
    x = torch.full((rows, inputs), 0.01, dtype=dtype)
    operations = 2 * rows * each
    turns = max(1, round(_OPERATIONS / operations))

    def run() -> None:
        for turn in range(turns):
            linear(x, weights[turn % copies])

    return turns * operations / median_seconds(run, repeat)


def median_seconds(run: Callable[[], object], repeat: int) -> float:
    """The median of ``repeat`` runs, after one that doesn't count."""
    run()
    times = []
    for _ in range(repeat):
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


if __name__ == "__main__":
    main()
