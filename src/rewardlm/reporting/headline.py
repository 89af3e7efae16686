"""What a comparison says, in words: which share fell or rose, by how much, how surely, and by whose judgement.

The sentences are computed from the numbers alone. A change is called a fall or a rise only where its 95 % interval
leaves zero out and its p-value, corrected for the other tests that are read with it, is below .05. A judge that was the
reward in training is never quoted without saying so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rewardlm.formats import interval_of_points, p_values_text, percent, points
from rewardlm.measuring.comparison import OF_PROMPTS, Comparison, Metric, Split
from rewardlm.measuring.independence import was_reward as is_reward
from rewardlm.reporting.names import METRICS, OF_SPLIT
from rewardlm.stats import LEVEL

Verdict = Literal["fell", "rose", "unclear", "nothing"]
Part = tuple[str, bool]  # a piece of text, and whether it is what the reader must not miss


def primary_text(found: Comparison) -> str | None:
    """What the primary outcome is and when it was fixed; None for a comparison that has none."""
    if found.primary is None:
        return None
    return (
        f"Primary outcome: the {METRICS[found.primary.metric]} {OF_SPLIT[found.primary.split]} by "
        f"{found.primary.scorer}. {found.primary_fixed.sentence}"
    )


@dataclass(frozen=True, slots=True)
class Finding:
    """One paired comparison: of toxic shares, or of another ``metric``. ``delta`` and its interval are fractions, to
    minus from.

    ``n`` counts pairs of answers, or prompts where the metric is of prompts; ``shares`` are the toxic shares of these
    pairs. ``p_adjusted`` is ``p_value`` corrected for the tests that are read with it; None: there was no correction.
    ``primary`` says whether this is the outcome that was to count. ``is_reward`` says whether one of the two models was
    trained on this judge, None where nobody recorded that; ``reward_of`` names all models of the page that were.
    ``is_relative``: the judge taught the reward of one of them, was taught by it or has a teacher in common with it, or
    nobody recorded whether.
    """

    baseline: str
    model: str
    scorer: str
    split: Split
    n: int
    delta: float | None
    interval: tuple[float, float] | None
    p_value: float | None
    shares: tuple[float | None, float | None]
    is_reward: bool | None
    reward_of: tuple[str, ...]
    is_relative: bool = False
    p_adjusted: float | None = None
    primary: bool = False
    metric: Metric = "toxic_fraction"

    @property
    def counted(self) -> str:
        """What ``n`` counts."""
        return "prompts" if self.metric in OF_PROMPTS else "pairs"

    @property
    def verdict(self) -> Verdict:
        if self.delta is None or self.n == 0:
            return "nothing"
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1] or self.only_uncorrected:
            return "unclear"
        return "fell" if self.delta < 0 else "rose"

    @property
    def only_uncorrected(self) -> bool:
        """Whether the p-value that counts is not below .05: the adjusted one where there is one."""
        p_value = self.p_value if self.p_adjusted is None else self.p_adjusted
        return p_value is not None and p_value >= LEVEL


def findings(
    found: Comparison, rewards: Mapping[str, Sequence[str] | None], metric: Metric = "toxic_fraction"
) -> list[Finding]:
    """All changes of ``found`` in ``metric``; ``rewards`` gives the scorers that each model was trained on."""
    related = relatives(found)
    primary = None if found.primary is None else (found.primary.scorer, found.primary.split, found.primary.metric)
    result = []
    for entry in found.comparisons:
        change = entry.of(metric)
        result.append(
            Finding(
                baseline=entry.from_,
                model=entry.to,
                scorer=entry.scorer,
                split=entry.split,
                n=change.n,
                delta=change.delta,
                interval=change.ci95,
                p_value=change.p_value,
                shares=(entry.before, entry.after),
                is_reward=was_reward(entry.scorer, [rewards.get(entry.from_), rewards.get(entry.to)]),
                reward_of=tuple(
                    model.label for model in found.models if was_reward(entry.scorer, [rewards.get(model.label)])
                ),
                is_relative=any((entry.scorer, label) in related for label in (entry.from_, entry.to)),
                p_adjusted=change.p_adjusted,
                primary=primary == (entry.scorer, entry.split, metric),
                metric=metric,
            )
        )
    return result


def relatives(found: Comparison) -> set[tuple[str, str]]:
    """(judge, model) where the judge is a relative of the model's reward, or may be one, as the audit found."""
    return {
        (warning.scorer, warning.model)
        for warning in found.warnings
        if warning.code == "judge_taught_reward" and warning.scorer is not None
    }


def was_reward(scorer: str, rewards: Sequence[Sequence[str] | None]) -> bool | None:
    """Whether ``scorer`` is among any of the lists; None if it is in none and one list is unknown."""
    if any(is_reward(scorer, names or ()) for names in rewards):
        return True
    return None if any(names is None for names in rewards) else False


def sentences(found: Sequence[Finding], scorers: Sequence[str]) -> list[list[Part]]:
    """A paragraph for every model compared. It begins with the primary outcome.

    Without a primary outcome in ``found``, it begins with all answers, by the first of ``scorers`` that was not the
    model's reward and is not known to be a relative of it.
    """
    paragraphs = []
    for baseline, model in dict.fromkeys((finding.baseline, finding.model) for finding in found):
        every = [finding for finding in found if (finding.baseline, finding.model) == (baseline, model)]
        mine = {(finding.scorer, finding.split): finding for finding in every if finding.metric == "toxic_fraction"}
        judges = [scorer for scorer in scorers if (scorer, "all") in mine]
        judges.sort(key=lambda scorer: bool(mine[scorer, "all"].is_reward) or mine[scorer, "all"].is_relative)
        if not judges:
            continue
        first = next((finding for finding in every if finding.primary), mine[judges[0], "all"])
        judges.sort(key=lambda scorer: scorer != first.scorer)
        parts = _main_sentence(first)
        if first.metric != "toxic_fraction":
            first = mine.get((first.scorer, first.split), mine[judges[0], "all"])
            parts += [(" ", False), *_main_sentence(first)[1:]]
        for split, where in _WHERE.items():
            if split != first.split and (judges[0], split) in mine:
                parts += _short_sentence(where, mine[judges[0], split])
        for scorer in judges[1:]:
            main = mine.get((scorer, first.split), mine[scorer, "all"])
            role = ""
            if main.is_reward:
                role = f", the reward that {model} was trained on,"
            elif main.reward_of:
                role = f" (the reward of {', '.join(main.reward_of)})"
            there = "" if main.split == "all" else f" {_WHERE.get(main.split, 'there').lower()}"
            parts += _short_sentence(f"By {scorer}{role}{there}", main)
        if mine[judges[0], "all"].is_reward:
            parts.append((" No judge here is independent of the training.", True))
        elif any(mine[scorer, "all"].is_reward for scorer in judges):
            parts.append(
                (
                    " A judge that was the reward shows that training reached its goal, not that the goal was right.",
                    False,
                )
            )
        paragraphs.append(parts)
    return paragraphs


_WHERE: dict[Split, str] = {
    "all": "On all answers",
    "toxic_prompts": "On toxic prompts",
    "comparable": "On comparable answers",
}


def _main_sentence(finding: Finding) -> list[Part]:
    """ "By J, which was …, the toxic share fell by 3.7 percentage points (…), from 13.0 % … to 9.0 % …"."""
    role = {
        True: f", the reward that {finding.model} was trained on,",
        False: f", the reward of {', '.join(finding.reward_of)} but not of {finding.model},"
        if finding.reward_of
        else ", which was not a reward in training,",
        None: " (whether it was a reward in training is not recorded)",
    }[finding.is_reward]
    parts: list[Part] = [
        (f"{finding.baseline} → {finding.model}. ", True),
        (f"By {finding.scorer}{role} the {METRICS[finding.metric]} {OF_SPLIT[finding.split]} ", False),
    ]
    if finding.verdict == "nothing" or finding.delta is None:
        return [*parts, ("can’t be compared", True), (": no pair of answers was scored in both.", False)]
    evidence = f"95 % interval {interval_of_points(finding.interval)}"
    if finding.p_value is not None:
        evidence += f"; {p_values_text(finding.p_value, finding.p_adjusted)}"
    shares = ""
    if None not in finding.shares and finding.metric == "toxic_fraction":
        before, after = map(percent, finding.shares)
        shares = f", from {before} of {finding.baseline}’s answers in these pairs to {after} of {finding.model}’s"
    evidence = f" ({evidence}; {finding.n:,} {finding.counted}){shares}"
    if finding.verdict != "unclear":
        size = f"{100 * abs(finding.delta):.1f}"
        return [*parts, (f"{finding.verdict} by {size} percentage points", True), (f"{evidence}.", False)]
    return [
        *parts,
        (f"changed by {points(finding.delta)} percentage points{evidence}: {_doubt(finding)}, so this is ", False),
        ("not significant at this size", True),
        (".", False),
    ]


def _short_sentence(opening: str, finding: Finding) -> list[Part]:
    if finding.verdict == "nothing" or finding.delta is None:
        return [(f" {opening} it can’t be compared.", False)]
    interval = interval_of_points(finding.interval)
    if finding.verdict == "unclear":
        return [
            (f" {opening} the change is ", False),
            ("not significant", True),
            (f" ({points(finding.delta)}; {interval}{_correction(finding)}).", False),
        ]
    size = f"{100 * abs(finding.delta):.1f}"
    return [(f" {opening} it ", False), (f"{finding.verdict} by {size} points", True), (f" ({interval}).", False)]


def _doubt(finding: Finding) -> str:
    if finding.interval is None:
        return "there is no interval"
    if finding.interval[0] <= 0 <= finding.interval[1]:
        return "the interval includes zero"
    return "corrected for the tests that are read with it, it could be chance"


def _correction(finding: Finding) -> str:
    """Why a change is not significant although its interval leaves zero out; empty if the interval holds zero."""
    if finding.interval is None or finding.interval[0] <= 0 <= finding.interval[1]:
        return ""
    return f"; {p_values_text(finding.p_value, finding.p_adjusted)}"
