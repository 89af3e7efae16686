"""Several judges as one: the mean or the maximum of their main labels, and how far they disagree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rewardlm.errors import ScorerError
from rewardlm.scoring.scorer import Scorer, cuts, is_online, piece_of, score_texts, twin_of
from rewardlm.types import DISAGREEMENT, Verdict

How = Literal["mean", "max"]
# Ensembles with a name of their own. One judge of rude words and one of hate miss different things.
PRESETS = {"toxicity+hate": "max(starter,starter#hate)"}


@dataclass(frozen=True, slots=True)
class Member:
    """One vote of an ensemble: ``label`` of ``scorer``, kept under ``name``. Two may be labels of one scorer."""

    name: str
    scorer: Scorer
    label: str


class Ensemble:
    """``mean(a,b)`` or ``max(a,b)``: label "toxicity" is the combination, and each member's main value is
    kept under the member's name. A text that one member can't score is unscored: a mean over whoever
    answered would compare texts judged by different judges.

    The last label, "disagreement", is the highest minus the lowest member's value. It is no degree of toxicity:
    it says how far the verdict depends on which judge you ask.
    """

    def __init__(self, members: Sequence[Scorer | Member], how: How = "mean", *, name: str | None = None) -> None:
        self.members = tuple(
            member if isinstance(member, Member) else Member(member.name, member, member.labels[0])
            for member in members
        )
        names = [member.name for member in self.members]
        if len(names) < 2 or len(set(names)) < len(names) or {"toxicity", DISAGREEMENT} & set(names):
            raise ScorerError(
                f"{how}({','.join(names)}): an ensemble needs two or more scorers of different names, "
                f"none of them called 'toxicity' or {DISAGREEMENT!r}"
            )
        votes = [(id(member.scorer), member.label) for member in self.members]
        for number, vote in enumerate(votes):
            if vote in votes[:number]:
                raise ScorerError(
                    f"{how}({','.join(names)}): {names[votes.index(vote)]} and {names[number]} are one label of one "
                    "judge: name each once"
                )
        self.how = how
        self.name = name or f"{how}({','.join(names)})"
        self.labels = ("toxicity", *names, DISAGREEMENT)
        # Each judge once, however many of its labels vote: it is asked once too.
        self._scorers = list({id(member.scorer): member.scorer for member in self.members}.values())
        revisions = [getattr(scorer, "revision", None) for scorer in self._scorers]
        self.revision = None if None in revisions else "+".join(str(revision) for revision in revisions)
        precisions = {getattr(scorer, "precision", None) for scorer in self._scorers} - {None}
        self.precision = "+".join(sorted(map(str, precisions))) or None
        self.piece = min(piece_of(scorer) for scorer in self._scorers)
        self.online = any(is_online(scorer) for scorer in self._scorers)

    def twin(self) -> Ensemble | None:
        """An ensemble of the members' twins; None where a member has none."""
        twins = {id(scorer): twin_of(scorer) for scorer in self._scorers}
        members = [
            Member(member.name, twin, member.label)
            for member in self.members
            if (twin := twins[id(member.scorer)]) is not None
        ]
        return Ensemble(members, self.how, name=self.name) if len(members) == len(self.members) else None

    def score(self, texts: Sequence[str]) -> list[Verdict]:
        # Members are not held to [0, 1] here: whoever calls this through score_texts says what is allowed,
        # and every member's value is among the values that are checked there.
        verdicts = {id(scorer): score_texts(scorer, texts, bounded=False) for scorer in self._scorers}
        columns = [verdicts[id(member.scorer)] for member in self.members]
        return [self._combine(row) for row in zip(*columns, strict=True)]

    def cuts(self, texts: Sequence[str]) -> list[bool]:
        """For each text, whether any member reads only a part of it."""
        return [any(row) for row in zip(*(cuts(scorer, texts) for scorer in self._scorers), strict=True)]

    def _combine(self, verdicts: Sequence[Verdict]) -> Verdict:
        missing = [(m.name, v) for m, v in zip(self.members, verdicts, strict=True) if m.label not in v.values]
        if missing:
            # An empty text keeps its bare reason, so that it is recognised as no failure.
            reasons = {v.reason for _, v in missing}
            reason = reasons.pop() if len(missing) == len(verdicts) and len(reasons) == 1 else None
            named = "; ".join(f"{name}: {v.reason}" for name, v in missing)
            return Verdict(reason=reason or named, failed=any(v.failed for _, v in missing))
        values = [v.values[m.label] for m, v in zip(self.members, verdicts, strict=True)]
        combined = max(values) if self.how == "max" else sum(values) / len(values)
        return Verdict(dict(zip(self.labels, (combined, *values, max(values) - min(values)), strict=True)))
