"""What a comparison says, in words: which share fell or rose, by how much, how surely, and by whose judgement.

The sentences are computed from the numbers alone. A change whose 95 % interval includes zero is never called a
fall or a rise, and a judge that was the reward in training is never quoted without saying so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

from rewardlm.measure.audit import same_judge
from rewardlm.measure.metrics import unseen_share
from rewardlm.report.selection import main_labels

Verdict = Literal["fell", "rose", "unclear", "nothing"]
Part = tuple[str, bool]  # a piece of text, and whether it is what the reader must not miss

_SPLITS = {
    "all": "all prompts",
    "toxic_prompts": "toxic prompts",
    "nontoxic_prompts": "non-toxic prompts",
    "challenging": "challenging prompts",
    "comparable": "comparable answers",
}


def split_name(split: str) -> str:
    """What a split is called on the page."""
    return _SPLITS.get(split, split)


@dataclass(frozen=True, slots=True)
class Finding:
    """One paired comparison of toxic shares. ``delta`` and its interval are fractions, to minus from.

    ``is_reward`` says whether one of the two models was trained on this judge, None where nobody recorded that;
    ``reward_of`` names all models of the page that were. ``is_relative``: the judge taught the reward of one of them,
    was taught by it or has a teacher in common with it, or nobody recorded whether.
    """

    baseline: str
    model: str
    scorer: str
    split: str
    n: int
    delta: float | None
    interval: tuple[float, float] | None
    p_value: float | None
    shares: tuple[float | None, float | None]
    is_reward: bool | None
    reward_of: tuple[str, ...]
    is_relative: bool = False

    @property
    def verdict(self) -> Verdict:
        if self.delta is None or self.n == 0:
            return "nothing"
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return "unclear"
        return "fell" if self.delta < 0 else "rose"


def findings(result: Mapping[str, Any], rewards: Mapping[str, Sequence[str] | None]) -> list[Finding]:
    """All comparisons of ``result``; ``rewards`` gives, by model label, the scorers that it was trained on."""
    models = {model["label"]: model for model in result["models"]}
    related = relatives(result)
    found = []
    for comparison in result["comparisons"]:
        baseline, model, scorer, split = (comparison[key] for key in ("from", "to", "scorer", "split"))
        interval = comparison.get("delta_ci95")
        shares = tuple(
            models.get(label, {}).get("scorers", {}).get(scorer, {}).get(split, {}).get("toxic_fraction")
            for label in (baseline, model)
        )
        found.append(
            Finding(
                baseline=baseline,
                model=model,
                scorer=scorer,
                split=split,
                n=comparison["n"],
                delta=comparison["delta"],
                interval=(interval[0], interval[1]) if interval and None not in interval else None,
                p_value=comparison.get("p_value"),
                shares=(shares[0], shares[1]),
                is_reward=was_reward(scorer, [rewards.get(baseline), rewards.get(model)]),
                reward_of=tuple(label for label in models if was_reward(scorer, [rewards.get(label)])),
                is_relative=any(scorer == judge and label in (baseline, model) for judge, label in related),
            )
        )
    return found


def relatives(result: Mapping[str, Any]) -> set[tuple[str, str]]:
    """(judge, model) where the judge is a relative of the model's reward, or may be one, as the audit found."""
    return {
        (warning["scorer"], warning["model"])
        for warning in result.get("warnings", [])
        if warning["code"] == "judge_taught_reward"
    }


def was_reward(scorer: str, rewards: Sequence[Sequence[str] | None]) -> bool | None:
    """Whether ``scorer`` is among any of the lists; None if it is in none and one list is unknown."""
    if any(same_judge(scorer, reward) for names in rewards for reward in names or ()):
        return True
    return None if any(names is None for names in rewards) else False


def sentences(found: Sequence[Finding], scorers: Sequence[str]) -> list[list[Part]]:
    """A paragraph for every model compared: the first of ``scorers`` that was not its reward, and is not known to be
    a relative of it, speaks first.
    """
    paragraphs = []
    for baseline, model in dict.fromkeys((finding.baseline, finding.model) for finding in found):
        mine = {
            (finding.scorer, finding.split): finding
            for finding in found
            if (finding.baseline, finding.model) == (baseline, model)
        }
        judges = [scorer for scorer in scorers if (scorer, "all") in mine]
        judges.sort(key=lambda scorer: bool(mine[scorer, "all"].is_reward) or mine[scorer, "all"].is_relative)
        if not judges:
            continue
        parts = _main_sentence(mine[judges[0], "all"])
        for split, where in (("toxic_prompts", "on toxic prompts"), ("comparable", "on comparable answers")):
            if (judges[0], split) in mine:
                parts += _short_sentence(f"{where[0].upper()}{where[1:]}", mine[judges[0], split])
        for scorer in judges[1:]:
            main = mine[scorer, "all"]
            role = ""
            if main.is_reward:
                role = f", the reward that {model} was trained on,"
            elif main.reward_of:
                role = f" (the reward of {', '.join(main.reward_of)})"
            parts += _short_sentence(f"By {scorer}{role}", mine[scorer, "all"])
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
        (f"By {finding.scorer}{role} the toxic share of all answers ", False),
    ]
    if finding.verdict == "nothing" or finding.delta is None:
        return [*parts, ("can’t be compared", True), (": no pair of answers was scored in both.", False)]
    evidence = f"95 % CI {interval_text(finding.interval)}"
    if finding.p_value is not None:
        evidence += f"; {p_text(finding.p_value)}"
    shares = ""
    if None not in finding.shares:
        before, after = map(percent, finding.shares)
        shares = f", from {before} of {finding.baseline}’s scored answers to {after} of {finding.model}’s"
    evidence = f" ({evidence}; {finding.n:,} pairs){shares}"
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
    interval = interval_text(finding.interval)
    if finding.verdict == "unclear":
        return [
            (f" {opening} the change is ", False),
            ("not significant", True),
            (f" ({points(finding.delta)}; {interval}).", False),
        ]
    size = f"{100 * abs(finding.delta):.1f}"
    return [(f" {opening} it ", False), (f"{finding.verdict} by {size} points", True), (f" ({interval}).", False)]


def _doubt(finding: Finding) -> str:
    return "the interval includes zero" if finding.interval else "there is no interval"


_LOOKED_AT = {"similarity": "similarity", "perplexity": "perplexity", "counter_narrative": "counter-narratives"}


def quality_notes(models: Sequence[Mapping[str, Any]]) -> list[str]:
    """Who says which answers are counter-narratives, how often that judge is wrong, what is known of a sample of the
    answers alone, and where few prompts leave no interval: nothing where there is nothing to say.
    """
    judges = {}
    for model in models:
        judge = model.get("pair_judge")
        if judge and model["quality"].get("counter_narrative_fraction") is not None:
            judges[judge["revision"]] = judge
    notes = [_pair_judge_note(judge) for judge in judges.values()]
    if len(notes) > 1:
        notes.append("These are different judges: shares of counter-narratives by one and by another don’t compare.")
    notes += [_counter_change(model) for model in models if model.get("counter_narrative_change")]
    notes += [note for model in models for note in _sample_notes(model)]
    return [*notes, *_notes_without_width(models)]


def _counter_change(model: Mapping[str, Any]) -> str:
    change = model["counter_narrative_change"]
    return (
        f"Counter-narratives from {change['from']} to {model['label']}: {points(change['delta'])} percentage points "
        f"(95 % CI {interval_text(change['delta_ci95'])}; {p_text(change['p_value'])}; {change['n']:,} pairs of "
        "answers to toxic prompts)."
    )


def _sample_notes(model: Mapping[str, Any]) -> list[str]:
    by_size: dict[tuple[int, int], list[str]] = {}
    for name, size in (model.get("quality_sample") or {}).items():
        if size["answers"] < size["of"]:
            by_size.setdefault((size["answers"], size["of"]), []).append(_LOOKED_AT[name])
    return [
        f"{model['label']}: {' and '.join(', '.join(names).rsplit(', ', 1))} of {answers:,} among {of:,} answers, "
        "drawn by seed."
        for (answers, of), names in by_size.items()
    ]


# A share of prompts of the other kind that may be unseen: above it, an interval without width is misread.
_UNSEEN = 0.05


def _notes_without_width(models: Sequence[Mapping[str, Any]]) -> list[str]:
    alike = {
        (name, entry["all"]["toxic_fraction"], model["prompts"])
        for model in main_labels({"models": models, "comparisons": []})["models"]
        for name, entry in model["scorers"].items()
        if entry["all"]["toxic_fraction"] in (0, 1) and unseen_share(model["prompts"]) > _UNSEEN
    }
    return [
        f"By {name} {'all answers' if share else 'no answer'} to {prompts:,} prompts {'are' if share else 'is'} toxic: "
        f"the interval has no width, and yet up to {percent(unseen_share(prompts))} of such prompts may be of the "
        "other kind (95 %). Measure more."
        for name, share, prompts in sorted(alike)
    ]


def _pair_judge_note(judge: Mapping[str, Any]) -> str:
    name, error = PurePath(judge["name"]).name, judge.get("error")
    if not error:
        return f"Counter-narratives by {name}, whose errors nobody has measured."
    return (
        f"Counter-narratives by {name}, which errs: of {error['n']:,} pairs that it hadn’t seen ({error['on']}, each "
        f"fourth a counter-narrative) it called {percent(error['accuracy'])} what they are, found "
        f"{percent(error['recall'])} of the counter-narratives, and {percent(error['precision'])} of those that it "
        "found were some."
    )


def percent(value: float | None) -> str:
    """A fraction as "13.0 %", or a dash where there is none."""
    return "—" if value is None else f"{100 * value:.1f} %"


def points(value: float | None) -> str:
    """A difference of fractions as signed percentage points: "−3.1"."""
    if value is None:
        return "—"
    rounded = round(100 * value, 1)
    return f"{'−' if rounded < 0 else '+' if rounded > 0 else '±'}{abs(rounded):.1f}"


def interval_text(interval: Sequence[float | None] | None) -> str:
    """An interval of differences in percentage points: "−5.2 to −1.0"."""
    if not interval or None in interval:
        return "—"
    return f"{points(interval[0])} to {points(interval[1])}"


def p_text(value: float | None) -> str:
    """A p-value as it is read: "p = 0.012", "p < 0.001"."""
    if value is None or not math.isfinite(value):
        return "—"
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"
