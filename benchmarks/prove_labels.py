"""How often intervals that are corrected by people's labels hold the true value, and how wide they are.

    python benchmarks/prove_labels.py [--draws 2000] [--write]

Populations are drawn: prompts whose answers resemble each other, answers that people would call toxic or not, and the
scores of a judge with a given AUC, which is badly calibrated. Labels are drawn from them as ``rewardlm label`` draws
them, and the shares of ``compare --labels`` come from the same functions. ``--write`` puts the tables into
docs/labelling.md. ``make prove-labels`` runs it: three quarters of an hour on one core.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from page import write_between
from scipy.special import ndtri

from rewardlm.config import CorrectionMethod
from rewardlm.formats import percent
from rewardlm.labelling.design import draw
from rewardlm.measuring.labelled import (
    CorrectedDelta,
    CorrectedShare,
    Labelled,
    change_by_labels,
    share_by_labels,
)
from rewardlm.stats import FloatArray

PAGE = Path("docs/labelling.md")
METHODS: tuple[CorrectionMethod, ...] = ("ppi", "rogan-gladen")
PROMPTS, SAMPLES, ALIKE = 750, 4, 0.15
EVERYTHING = np.ones((PROMPTS, SAMPLES), dtype=np.bool_)
SHARES, LABELS, AUCS = (0.01, 0.05, 0.1, 0.3), (100, 300, 1000), (0.7, 0.9, 0.99)
CHANGES = ((0.3, 0.1), (0.1, 0.05), (0.05, 0.05), (0.05, 0.01), (0.01, 0.01))
# Bars: intervals hold in at least this share of cases, and in at most that one where shares are not tiny.
LEAST, MOST, NOT_TINY = 0.93, 0.97, 0.05


def population(
    rng: np.random.Generator, shares: tuple[float, ...], auc: float, prompts: int = PROMPTS
) -> Iterator[tuple[FloatArray, FloatArray]]:
    """For models with these toxic shares: what people would say, and a judge's scores, Float[prompts, SAMPLES] each.

    Scores of toxic and of other answers are normal with one variance, as far apart as the AUC says, and are then put
    through a logistic curve that is too steep and has its middle elsewhere.
    """
    topic, taste = rng.standard_normal((2, prompts, 1))
    apart = math.sqrt(2) * ndtri(auc)
    for share in shares:
        mood = math.sqrt(ALIKE) * topic + math.sqrt(1 - ALIKE) * rng.standard_normal((prompts, SAMPLES))
        toxic = (mood < ndtri(share)).astype(np.float64)
        seen = apart * toxic + math.sqrt(0.2) * taste + math.sqrt(0.8) * rng.standard_normal((prompts, SAMPLES))
        yield toxic, 1 / (1 + np.exp(1.0 - 2.0 * (seen - apart / 2)))


def sure(rng: np.random.Generator, share: float, missed: float) -> tuple[FloatArray, FloatArray]:
    """What people would say, and a judge that is always sure, and misses that share of the toxic answers."""
    toxic = (rng.random((PROMPTS, SAMPLES)) < share).astype(np.float64)
    called = (toxic == 1) & (rng.random(toxic.shape) >= missed)
    return toxic, np.clip(np.where(called, 0.985, 0.015) + 0.015 * rng.standard_normal(toxic.shape), 0, 1)


def labelled(
    rng: np.random.Generator, toxic: FloatArray, scores: FloatArray, labels: int, classes: int = 8
) -> Labelled:
    """What is known of one model's answers by so many labels, drawn from them."""
    groups = np.zeros(scores.size, dtype=np.intp)
    sample = draw(scores.ravel(), groups, labels=labels, classes=classes, rng=rng)
    said = np.full(scores.size, np.nan)
    said[sample.rows] = toxic.ravel()[sample.rows]
    calls = (scores > 0.5).astype(np.float64)
    taken = np.bincount(sample.strata[sample.rows]) / np.bincount(sample.strata)
    columns = said, sample.strata.astype(float), groups.astype(float), taken[sample.strata]
    return Labelled(scores, calls, *(column.reshape(scores.shape) for column in columns))


def holds(found: CorrectedShare | CorrectedDelta | None, truth: float) -> bool | None:
    """Whether the interval has the truth; None where there is none."""
    if found is None or found.ci95 is None:
        return None
    return found.ci95[0] <= truth <= found.ci95[1]


def width(found: CorrectedShare | CorrectedDelta | None) -> float:
    """Of its interval; NaN where there is none."""
    return math.nan if found is None or found.ci95 is None else found.ci95[1] - found.ci95[0]


@dataclass
class Tally:
    """Of how many intervals by each of ``METHODS`` the truth is held, and how wide they are."""

    truth: float
    held: dict[str, list[bool | None]] = field(default_factory=lambda: {one: [] for one in METHODS})
    widths: dict[str, list[float]] = field(default_factory=lambda: {one: [] for one in METHODS})

    def add(self, method: str, found: CorrectedShare | CorrectedDelta | None) -> None:
        """Count one interval, or that there is none."""
        self.held[method].append(holds(found, self.truth))
        self.widths[method].append(width(found))

    def width_of(self, method: str) -> float:
        """The mean, of those that there are."""
        return float(np.nanmean(self.widths[method]))


def shares_table(draws: int) -> Iterator[str]:
    """A row a setting: how often the interval of a share holds, and how wide it is."""
    yield (
        "| share | labels | AUC | `ppi` holds | its width | of labels alone | √(1 − ρ²) | `rogan-gladen` holds | "
        "its width | without interval |"
    )
    yield f"|{'---|' * 10}"
    for share, labels, auc in itertools.product(SHARES, LABELS, AUCS):
        rng = np.random.default_rng(1)
        tally, rho = Tally(share), []
        for _ in range(draws):
            ((toxic, scores),) = population(rng, (share,), auc)
            table = labelled(rng, toxic, scores, labels)
            for method in METHODS:
                tally.add(method, share_by_labels(table, method, EVERYTHING))
            rho.append(np.corrcoef(toxic.ravel(), scores.ravel())[0, 1] if toxic.any() else 0.0)
        alone = 2 * 1.96 * math.sqrt(share * (1 - share) / labels)
        ppi, rogan_gladen = (tally.held[method] for method in METHODS)
        yield (
            f"| {share:g} | {labels:,} | {auc:g} | {rate(ppi, share)} | {tally.width_of('ppi'):.3f} | "
            f"× {tally.width_of('ppi') / alone:.2f} | {np.mean(np.sqrt(1 - np.square(rho))):.2f} | "
            f"{rate(rogan_gladen, share)} | {tally.width_of('rogan-gladen'):.3f} | "
            f"{percent(float(np.mean([one is None for one in rogan_gladen])))} |"
        )


def sure_table(draws: int) -> Iterator[str]:
    """A row a setting: how often the interval of a share holds for a judge that is sure, and sometimes wrong."""
    yield "| share | of it missed | labels | `ppi` holds | its width | `rogan-gladen` holds | its width |"
    yield f"|{'---|' * 7}"
    for (share, missed), labels in itertools.product(((0.02, 0.3), (0.05, 0.3), (0.1, 0.2), (0.3, 0.1)), (50, *LABELS)):
        rng = np.random.default_rng(4)
        tally = Tally(share)
        for _ in range(draws):
            table = labelled(rng, *sure(rng, share, missed), labels)
            for method in METHODS:
                tally.add(method, share_by_labels(table, method, EVERYTHING))
        yield (
            f"| {share:g} | {100 * missed:.0f} % | {labels:,} | "
            + " | ".join(f"{rate(tally.held[method], 0)} | {tally.width_of(method):.3f}" for method in METHODS)
            + " |"
        )


def changes_table(draws: int) -> Iterator[str]:
    """A row a setting: how often the interval of a change holds."""
    yield (
        "| shares | labels a model | AUC | `ppi` holds | its width | finds a change | `rogan-gladen` holds "
        "| its width |"
    )
    yield f"|{'---|' * 8}"
    for both, labels, auc in itertools.product(CHANGES, LABELS, AUCS):
        rng = np.random.default_rng(2)
        tally, seen = Tally(both[1] - both[0]), []
        for _ in range(draws):
            one, two = (labelled(rng, *answers, labels) for answers in population(rng, both, auc))
            found = [change_by_labels(one, two, method, EVERYTHING) for method in METHODS]
            for method, change in zip(METHODS, found, strict=True):
                tally.add(method, change)
            seen.append(holds(found[0], 0.0) is False)
        ppi, rogan_gladen = (tally.held[method] for method in METHODS)
        yield (
            f"| {both[0]:g} → {both[1]:g} | {labels:,} | {auc:g} | {rate(ppi, min(both))} | "
            f"{tally.width_of('ppi'):.3f} | {percent(float(np.mean(seen)))} | {rate(rogan_gladen, min(both))} | "
            f"{tally.width_of('rogan-gladen'):.3f} |"
        )


def plain_table(draws: int) -> Iterator[str]:
    """A row a setting: the width beside theory, where labels are a plain random sample of independent answers."""
    yield "| share | labels | AUC | holds | its width | √(1 − ρ²) of labels alone | ratio |"
    yield f"|{'---|' * 7}"
    for share, labels, auc in itertools.product((0.05, 0.1, 0.3), (300, 1000), AUCS):
        rng = np.random.default_rng(3)
        rows = []
        for _ in range(draws):
            n = 40 * labels
            toxic = (rng.random((n, 1)) < share).astype(np.float64)
            seen = math.sqrt(2) * ndtri(auc) * toxic + rng.standard_normal((n, 1))
            # Linear in what it saw: any curve would lower its correlation with labels.
            scores = (seen - seen.min()) / (seen.max() - seen.min())
            table = labelled(rng, toxic, scores, labels, classes=1)
            one = share_by_labels(table, "ppi", np.ones((n, 1), dtype=np.bool_))
            rho = np.corrcoef(toxic.ravel(), scores.ravel())[0, 1]
            theory = 2 * 1.96 * math.sqrt(share * (1 - share) * ((1 - rho**2) / labels + rho**2 / n))
            rows.append((holds(one, share), width(one), theory))
        hold, wide, theory_of = zip(*rows, strict=True)
        yield (
            f"| {share:g} | {labels:,} | {auc:g} | {rate(hold, share)} | {np.mean(wide):.4f} | "
            f"{np.mean(theory_of):.4f} | {np.mean(wide) / np.mean(theory_of):.2f} |"
        )


def rate(hold: Sequence[bool | None], share: float) -> str:
    """The share of intervals that hold, among those that there are; bold where it misses a bar beyond chance."""
    known = [one for one in hold if one is not None]
    if not known:
        return "–"
    found = float(np.mean(known))
    chance = 1.96 * math.sqrt(LEAST * (1 - LEAST) / len(known))
    missed = found < LEAST - chance or (share >= NOT_TINY and found > MOST + chance)
    text = f"{100 * found:.1f} %"
    return f"**{text}**" if missed else text


def main() -> None:
    """Print the tables, and write them if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2000, help="populations a setting")
    parser.add_argument("--write", action="store_true", help=f"write the tables into {PAGE}")
    asked = parser.parse_args()
    for mark, table in (
        ("shares", shares_table),
        ("sure", sure_table),
        ("changes", changes_table),
        ("plain", plain_table),
    ):
        lines = []
        for line in table(asked.draws):
            print(line, flush=True)
            lines.append(line)
        if asked.write:
            write_between(f"prove-labels-{mark}", "\n".join(lines) + "\n", PAGE)


if __name__ == "__main__":
    main()
