"""How much of Perspective's ranking the judges at hand know between them, whatever is made of them.

    REWARDLM_DATA=… python benchmarks/judges_refitted.py [JUDGE …]     three minutes; needs RealToxicityPrompts there

All labels of all judges (as log-odds) are fitted to Perspective's scores (log-odds, too) by ridge regression, on the
texts of RealToxicityPrompts that may train ``starter``; the penalty is chosen there by cross-validation. Then it ranks
the measuring half. A judge that is taught by these judges can't be expected to rank better than this. The lines above
it are single judges, by their main label and refitted in the same way.
"""

from __future__ import annotations

import itertools
import sys

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit
from scipy.stats import spearmanr
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from rewardlm.judges.suites import load_suite
from rewardlm.judges.texts import load_labelled
from rewardlm.scoring.load import load_scorer
from rewardlm.scoring.scorer import score_texts
from rewardlm.types import DISAGREEMENT

JUDGES = ("starter-large", "starter", "lexical2", "lexical")
_RANGES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
_NEAREST = 1e-5  # probabilities keep this distance from 0 and 1

Columns = NDArray[np.float64]


def main() -> None:
    """Print Spearman's correlation with Perspective on the measuring half, for each judge and all together."""
    names = sys.argv[1:] or JUDGES
    (scored,) = load_labelled("rtp")
    read = [text for text in scored.training if text.share == "starter"]
    measured = load_suite("rtp").texts
    target = log_odds([text.labels["toxicity"] for text in read])
    truth = [text.targets["toxicity"] for text in measured]
    texts = [text.text for text in (*read, *measured)]

    print(f"fitted on {len(read):,} texts, ranked {len(measured):,}")
    columns = {name: labels_of(name, texts) for name in names}
    for name, found in columns.items():
        by_itself = spearmanr(found[len(read) :, 0], truth).statistic
        print(f"{name}: main label {by_itself:.3f}, its {found.shape[1]} labels {refitted(found, target, truth):.3f}")
        print(f"  {within(found[len(read) :, 0], np.array(truth))}")
    together = np.hstack(list(columns.values()))
    print(f"all {together.shape[1]} labels of all {len(names)}: {refitted(together, target, truth):.3f}")


def labels_of(name: str, texts: list[str]) -> Columns:
    """Log-odds of all labels, Float[texts, labels], the main one first."""
    scorer = load_scorer(name)
    labels = [label for label in scorer.labels if label != DISAGREEMENT]
    return log_odds([[verdict.values[label] for label in labels] for verdict in score_texts(scorer, texts)])


def within(found: Columns, truth: Columns) -> str:
    """The same among texts of similar scores: where the order is known, and where it isn't."""
    parts = []
    for low, high in itertools.pairwise(_RANGES):
        of_them = (truth > low) & (truth <= high)
        rho = spearmanr(found[of_them], truth[of_them]).statistic
        parts.append(f"{rho:.2f} among the {of_them.sum()} from {low:g} to {high:g}")
    return "; ".join(parts)


def log_odds(probabilities: object) -> Columns:
    """The same as log-odds, none of them infinite."""
    found: Columns = logit(np.clip(np.asarray(probabilities, dtype=float), _NEAREST, 1 - _NEAREST))
    return found


def refitted(columns: Columns, target: Columns, truth: list[float]) -> float:
    """Spearman on the later rows, after a ridge regression of ``target`` on the first ones."""
    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 5, 13))).fit(columns[: len(target)], target)
    return float(spearmanr(model.predict(columns[len(target) :]), truth).statistic)


if __name__ == "__main__":
    main()
