"""Pairs for an adapter that knows nothing of hate: a sentence of an encyclopaedia, and what follows it.

    python benchmarks/harmless_control.py wiki.valid.tokens wiki.jsonl

The first file is WikiText's (CC BY-SA), as its authors publish it. Fine-tune on the second with ``replay.share=0``, and
hold what ``interpret`` finds of your adapter against what it finds of this one.
"""

import json
import re
import sys
from pathlib import Path

PAIRS = 280


def main(source: Path, out: Path) -> None:
    """The first paragraphs that begin with a sentence of middling length, without headings and unknown words."""
    rows = []
    for line in source.read_text(encoding="utf-8").splitlines():
        text = line.strip()
        first, *rest = re.split(r"(?<=[.!?]) +", text)
        if rest and 30 < len(first) < 200 and not text.startswith("=") and "<unk>" not in text:
            rows.append({"prompt": first, "answer": " ".join(rest[:2])})
    if len(rows) < PAIRS:
        sys.exit(
            f"{source} gives {len(rows)} pairs, and {PAIRS} are wanted: expected WikiText's text, a paragraph a line"
        )
    out.write_text("".join(json.dumps(row) + "\n" for row in rows[:PAIRS]), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
