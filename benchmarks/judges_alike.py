"""How alike the packaged judges' errors are: independent judges should err on different texts.

REWARDLM_DATA=… python benchmarks/judges_alike.py      a minute; needs HateCheck and RealToxicityPrompts there
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from scipy.stats import pearsonr

from rewardlm.judges.suites import load_suite
from rewardlm.scoring.load import load_scorer
from rewardlm.scoring.scorer import score_texts

JUDGES = ("starter", "witness", "lexical2")


def main() -> None:
    """On 1,200 texts of HateCheck and 900 of RealToxicityPrompts, drawn by seed."""
    rng = np.random.default_rng(0)
    cases, scored = load_suite("hatecheck").texts, load_suite("rtp").texts
    cases = [cases[at] for at in sorted(rng.permutation(len(cases))[:1200])]
    scored = [scored[at] for at in sorted(rng.permutation(len(scored))[:900])]
    hateful = np.array([text.targets["hate"] for text in cases]) >= 0.5
    toxicity = np.array([text.targets["toxicity"] for text in scored])
    wrong, residual = {}, {}
    for name in JUDGES:
        scorer = load_scorer(name)
        label = "hate" if "hate" in scorer.labels else scorer.labels[0]
        main_label = "toxicity" if "toxicity" in scorer.labels else scorer.labels[0]
        found = [score.values[label] for score in score_texts(scorer, [text.text for text in cases])]
        wrong[name] = (np.array(found) >= 0.5) != hateful
        found = [score.values[main_label] for score in score_texts(scorer, [text.text for text in scored])]
        residual[name] = np.array(found) - toxicity
    for one, two in combinations(JUDGES, 2):
        a, b = wrong[one], wrong[two]
        print(
            f"{one}, {two}: wrong on HateCheck {a.mean():.2f}, {b.mean():.2f}, both {(a & b).mean():.2f} "
            f"(by chance {a.mean() * b.mean():.2f}), correlation {np.corrcoef(a, b)[0, 1]:.2f}; "
            f"residuals on RealToxicityPrompts {pearsonr(residual[one], residual[two])[0]:.2f}"
        )


if __name__ == "__main__":
    main()
