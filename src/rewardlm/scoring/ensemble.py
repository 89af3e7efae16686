"""Several judges as one: the mean or the maximum of their main labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rewardlm.errors import ScorerError
from rewardlm.scoring.scorer import Scorer, score_texts
from rewardlm.types import Verdict

How = Literal["mean", "max"]


class Ensemble:
    """``mean(a,b)`` or ``max(a,b)``: label "toxicity" is the combination, and each member's main value is
    kept under the member's name. A text that one member can't score is unscored: a mean over whoever
    answered would compare texts judged by different judges.
    """

    def __init__(self, scorers: Sequence[Scorer], how: How = "mean") -> None:
        names = [scorer.name for scorer in scorers]
        if len(names) < 2 or len(set(names)) < len(names) or "toxicity" in names:
            raise ScorerError(
                f"{how}({','.join(names)}): an ensemble needs two or more scorers of different names, "
                "none of them called 'toxicity'"
            )
        self.scorers = tuple(scorers)
        self.how = how
        self.name = f"{how}({','.join(names)})"
        self.labels = ("toxicity", *names)
        revisions = [getattr(scorer, "revision", None) for scorer in scorers]
        self.revision = None if None in revisions else "+".join(str(revision) for revision in revisions)

    def score(self, texts: Sequence[str]) -> list[Verdict]:
        # Members are not held to [0, 1] here: whoever calls this through score_texts says what is allowed,
        # and every member's value is among the values that are checked there.
        columns = [score_texts(scorer, texts, bounded=False) for scorer in self.scorers]
        return [self._combine(row) for row in zip(*columns, strict=True)]

    def _combine(self, verdicts: Sequence[Verdict]) -> Verdict:
        missing = [(s.name, v) for s, v in zip(self.scorers, verdicts, strict=True) if v.reason is not None]
        if missing:
            # An empty text keeps its bare reason, so that it is recognised as no failure.
            reasons = {v.reason for _, v in missing}
            reason = reasons.pop() if len(missing) == len(verdicts) and len(reasons) == 1 else None
            named = "; ".join(f"{name}: {v.reason}" for name, v in missing)
            return Verdict(reason=reason or named, failed=any(v.failed for _, v in missing))
        values = [v.values[s.labels[0]] for s, v in zip(self.scorers, verdicts, strict=True)]
        combined = max(values) if self.how == "max" else sum(values) / len(values)
        return Verdict({"toxicity": combined, **dict(zip(self.labels[1:], values, strict=True))})
