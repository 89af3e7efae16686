"""Is what ``interpret`` claims of heads, MLPs and neurons true? On small models in which the change was planted.

    python benchmarks/prove_inside.py [--seeds 100] [--only KIND …] [--write]

``known_changes.py`` plants a head, a neuron, a rotation of a layer, a switch on the template, or random weights in all
modules, by seed, and says whether the analysis, which isn't told, found that and nothing else; if not, whether nothing
was claimed or something else. Of the random adapters, which have no place to be found, it counts those of which
anything is claimed. Intervals of shares are Clopper and Pearson's.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small models are quickest on one thread

import argparse
import time
from pathlib import Path
from typing import Literal

from known_changes import ChangeKind, analysed, found, plant, top_neuron_is_planted
from page import write_between
from scipy.stats import beta

PAGE = Path("docs/interpretation-inside.md")
ASIDE = "aside"
WORDS: dict[ChangeKind | Literal["aside"], str] = {
    "head": "one head’s output matrix",
    "neuron": "one neuron’s value vector",
    "rotation": "all that a layer writes, rotated",
    "template": "a switch on the template’s tokens",
    ASIDE: "one head’s output matrix, 60° aside",
    "random": "nothing: random weights in all modules",
}


def ends(hits: int, n: int) -> str:
    """The exact 95 % interval of a share, as text."""
    low = 0.0 if hits == 0 else float(beta.ppf(0.025, hits, n - hits + 1))
    high = 1.0 if hits == n else float(beta.ppf(0.975, hits + 1, n - hits))
    return f"{100 * low:.0f} to {100 * high:.0f} %"


def main() -> None:
    """Plant, look, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--only", nargs="*", choices=WORDS, default=list(WORDS))
    parser.add_argument("--write", action="store_true", help="put the table into docs/interpretation-inside.md")
    given = parser.parse_args()
    lines = ["| planted | cases | found, and nothing else | 95 % interval | nothing claimed |", "|---|---|---|---|---|"]
    for kind in given.only:
        begun, right, silent, neurons = time.monotonic(), 0, 0, 0
        for seed in range(given.seeds):
            known = plant("head", seed, aside=True) if kind == ASIDE else plant(kind, seed)
            sites = analysed(known)
            is_right = found(known, sites)
            right += is_right
            silent += not any(one.origin or one.claimed for one in sites)
            neurons += kind == "neuron" and top_neuron_is_planted(known)
            if not is_right:
                print(f"{kind}, seed {seed}: not right", flush=True)
        what = WORDS[kind]
        if kind == "random":
            share = f"something is claimed in {given.seeds - silent} | {ends(given.seeds - silent, given.seeds)}"
        else:
            share = f"{right} | {ends(right, given.seeds)}"
        lines.append(f"| {what} | {given.seeds} | {share} | {silent} |")
        if kind == "neuron":
            lines.append(
                f"| the same: the neuron itself | {given.seeds} | {neurons} | {ends(neurons, given.seeds)} | |"
            )
        print(f"{lines[-1]}  ({time.monotonic() - begun:.0f} s)", flush=True)
    print("\n".join(lines))
    if given.write:
        write_between("planted", "\n".join(lines), PAGE)


if __name__ == "__main__":
    main()
