"""How much memory the meter takes as its prompts grow: measure, score by another judge and compare, each command's
peak in a fresh process.

    make bench-memory           or  python benchmarks/memory.py [--prompts 10000 100000] [--samples K]

The model is ``tiny``, so that little but the prompts, answers and scores is in memory. A sample of 2,000 answers is
looked at more closely. The table shows the resident peak in MiB and its ratio to that of the fewest prompts.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

SENTENCE = "who says that people from over there never work and only want our money so why should we let them in"
# The child itself reports its peak: the parent would see the largest of all its children.
RUN = """
import pathlib, sys
from rewardlm.cli.app import main
from rewardlm.runs import peak_rss_mb
peak = pathlib.Path(sys.argv.pop())
try:
    main()
finally:
    peak.write_text(str(peak_rss_mb()))
"""


def main() -> None:
    """Measure with every number of prompts, and print one table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = [row for number in sorted(options.prompts) for row in peaks_of(number, options.samples)]
    fewest = {row["command"]: row["peak_mib"] for row in reversed(rows)}
    for row in rows:
        row["ratio"] = row["peak_mib"] / fewest[row["command"]]
    if options.json:
        print(json.dumps(rows))
        return
    table = Table("command", "prompts", "answers", "peak MiB", "ratio", "seconds")
    for row in rows:
        numbers = (row["prompts"], row["answers"], round(row["peak_mib"]), f"{row['ratio']:.2f}", round(row["seconds"]))
        table.add_row(row["command"], *map(str, numbers))
    Console().print(table)


def peaks_of(number: int, samples: int) -> Iterator[dict[str, Any]]:
    """The commands on ``number`` prompts, each in a process of its own."""
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        prompts, peak, run = (str(Path(folder) / name) for name in ("prompts.jsonl", "peak", "run"))
        with open(prompts, "w") as file:
            for row in range(number):
                text = f"{' '.join(draw.choices(SENTENCE.split(), k=14))} {row}"
                file.write(json.dumps({"id": f"p{row}", "prompt": text, "toxicity": draw.random()}) + "\n")
        flags = ["--prompts", prompts, "--scorer", "lexical", "--max-new-tokens", "4", "--samples", str(samples)]
        commands = {
            "measure": ["tiny", *flags, "--out", run, "quality_sample=2000", "counter_narrative=null"],
            "score": [run, "--scorer", "lexical2"],
            "compare": [run, "--json"],
        }
        for command, arguments in commands.items():
            started = time.monotonic()
            subprocess.run(
                [sys.executable, "-c", RUN, command, *arguments, peak], check=True, stdout=subprocess.DEVNULL
            )
            yield {
                "command": command,
                "prompts": number,
                "answers": number * samples,
                "peak_mib": float(Path(peak).read_text()),
                "seconds": time.monotonic() - started,
            }


if __name__ == "__main__":
    main()
