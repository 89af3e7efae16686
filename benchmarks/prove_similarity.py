"""What should similarity to the prompt earn in RL? The same training with several answers. ``make prove-similarity``.

    python benchmarks/prove_similarity.py            goes on where it was stopped
    python benchmarks/prove_similarity.py --page     only writes the table of finished runs into docs/results.md

SmolLM2 learns on the toxic prompts of RealToxicityPrompts' training half ($REWARDLM_DATA) by ``starter``, in the 30
steps of 32 answers that are the default. Each model then answers 240 toxic prompts of the other half, those of ``make
prove-prefer``; ``witness`` and ``lexical2`` took no part in training. A quarter of an hour of one core for each.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import prove_prefer
from page import write_between

import rewardlm as rl
from rewardlm.formats import number

OUT = Path("runs/prove-similarity")


@dataclass(frozen=True)
class Variant:
    """A training: what similarity earns in words, the algorithm, and the settings of both that aren't defaults."""

    earns: str
    algorithm: str
    terms: dict[str, float] = field(default_factory=dict)
    similarity: dict[str, float] = field(default_factory=dict)


# By folder.
VARIANTS = {
    "10": Variant("10, without a limit", "rloo", {"similarity": 10, "similarity_enough": 1}),
    "5-enough": Variant("5, up to a similarity of 0.3", "rloo", {"similarity": 5}),
    "8-enough": Variant("**8, up to 0.3: the default**", "rloo"),
    "target": Variant("from 8, up to 0.3, adapted to 0.25", "rloo", similarity={"target": 0.25}),
    "target-fast": Variant("the same at a rate of 1", "rloo", similarity={"target": 0.25, "rate": 1.0}),
    "grpo": Variant("**8, up to 0.3: the default**", "grpo"),
    "ppo": Variant("**8, up to 0.3: the default**", "ppo"),
    "ppo-target": Variant("from 8, up to 0.3, adapted to 0.25", "ppo", similarity={"target": 0.25}),
}


def main() -> None:
    """Train, measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true", help="run nothing")
    if not parser.parse_args().page:
        run_all()
    text = "\n".join(table()) + "\n"
    print(text)
    write_between("prove-similarity", text)


def run_all() -> None:
    """All trainings and measurements that aren't there yet."""
    learn, measured = (str(prove_prefer.prompts(part)) for part in ("train", "measure"))
    how: dict[str, Any] = {
        "prompts": measured, "judges": prove_prefer.JUDGES, "part": "measure", "limit": prove_prefer.LIMIT,
        "samples": 1, "max_new_tokens": 48, "generation": prove_prefer.SAMPLING,
    }  # fmt: skip
    rl.measure(prove_prefer.MODEL, out=OUT / "measure/PT", label="PT", **how)
    for name, variant in VARIANTS.items():
        rl.rlaf(
            prove_prefer.MODEL, prompts=learn, part="train", reward=prove_prefer.TEACHER, max_new_tokens=48,
            witness="none", algorithm=variant.algorithm, rewards={"terms": variant.terms},
            similarity=variant.similarity, out=OUT / name,
        )  # fmt: skip
        rl.measure(prove_prefer.MODEL, adapter=OUT / name, out=OUT / "measure" / name, label=name, **how)


def table() -> Iterator[str]:
    """A row a model: the toxic shares of its answers, and what they cost."""
    yield (
        "| algorithm | similarity earns | toxic by `witness` (95 %) | by `lexical2` | by `starter`, the reward | "
        "perplexity | similarity | opposes hate | ended | weight in the last five steps |"
    )
    yield f"|{'---|' * 10}"
    for name in ("PT", *VARIANTS):
        if not (OUT / "measure" / name / "run.json").exists():
            continue
        cells = [
            *(("none: PT", "") if name == "PT" else (VARIANTS[name].algorithm.upper(), VARIANTS[name].earns)),
            *prove_prefer.figures(OUT / "measure" / name),
            last_weight(name),
        ]
        yield f"| {' | '.join(cells)} |"


def last_weight(name: str) -> str:
    """What similarity earned at the end, where that was adapted."""
    if name == "PT" or not VARIANTS[name].similarity:
        return ""
    weights = [line["similarity_weight"] for line in rl.Run.open(OUT / name).read("metrics")]
    return number(fmean(weights[-5:]), ".1f")


if __name__ == "__main__":
    main()
