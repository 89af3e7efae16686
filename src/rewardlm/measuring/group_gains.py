"""Did the toxicity of answers fall alike for every group? The same sentences are about one group after another.

A sentence's template is the unit: its versions differ in the group alone, so groups are compared template by template.
Answers are judged, not prompts; a judge that dislikes a group's name in an answer does so before and after training.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from rewardlm.measuring import metrics
from rewardlm.measuring.grid import Rule
from rewardlm.measuring.utility_records import AnswersAboutGroups
from rewardlm.measuring.utility_results import GroupChange, GroupsChange, GroupSummary
from rewardlm.stats import LEVEL, FloatArray, against_others, all_alike, holm, mean_change


def summarise_groups(found: AnswersAboutGroups | None, rule: Rule) -> dict[str, dict[str, GroupSummary]]:
    """By judge and group, what the answers are like."""
    if found is None:
        return {}
    return {
        judge: {
            group: GroupSummary(
                n=int(found.answers[:, place].sum()),
                scored=int((~np.isnan(scores[:, place])).sum()),
                mean=metrics.mean(scores[:, place]),
                toxic_fraction=metrics.toxic_fraction(scores[:, place], **rule.of(judge).of_toxic()),
            )
            for place, group in enumerate(found.groups)
        }
        for judge, scores in found.scores.items()
    }


def groups_changes(
    from_: str, before: AnswersAboutGroups | None, after: AnswersAboutGroups | None, rule: Rule
) -> dict[str, GroupsChange]:
    """By judge of both, what changed for each group that both have, over the templates that both have."""
    if before is None or after is None:
        return {}
    templates = [one for one in after.templates if one in before.templates]
    groups = [one for one in after.groups if one in before.groups]
    if not templates or len(groups) < 2:
        return {}
    found = {
        judge: _change(
            from_,
            _means(before, judge, templates, groups),
            _means(after, judge, templates, groups),
            groups,
            rule,
        )
        for judge in after.scores
        if judge in before.scores
    }
    adjusted = holm([one.p_value for one in found.values()])
    return {
        judge: one.model_copy(update={"p_adjusted": p, "least": one.least if p is not None and p < LEVEL else []})
        for (judge, one), p in zip(found.items(), adjusted, strict=True)
    }


def _means(found: AnswersAboutGroups, judge: str, templates: Sequence[str], groups: Sequence[str]) -> FloatArray:
    """Float[T, G]: the mean score over samples; NaN without one."""
    rows = [found.templates.index(one) for one in templates]
    columns = [found.groups.index(one) for one in groups]
    with warnings.catch_warnings():
        # A cell without a score is NaN.
        warnings.simplefilter("ignore", RuntimeWarning)
        means: FloatArray = np.nanmean(found.scores[judge][rows][:, columns], axis=2)
    return means


def _change(from_: str, before: FloatArray, after: FloatArray, groups: Sequence[str], rule: Rule) -> GroupsChange:
    both = ~np.isnan(before) & ~np.isnan(after)
    deltas = np.where(both, after - before, np.nan)
    now = np.where(both, after, np.nan)
    alike, level = (all_alike(one, n_draws=rule.n_resamples, seed=rule.seed) for one in (deltas, now))
    gains, levels = against_others(deltas), against_others(now)
    found: dict[str, GroupChange] = {}
    for place, group in enumerate(groups):
        own, other, left = (
            mean_change(one[:, place], largest=largest, n_flips=rule.n_resamples, seed=rule.seed)
            # Scores lie in [0, 1], changes and differences of scores in [-1, 1], differences of changes in [-2, 2].
            for one, largest in ((deltas, 1.0), (gains, 2.0), (levels, 1.0))
        )
        found[group] = GroupChange(
            n=own.prompts,
            delta=own.mean,
            delta_ci95=own.ci95,
            against_others=other.mean,
            against_others_ci95=other.ci95,
            p_adjusted=alike.p_adjusted[place],
            after_against_others=left.mean,
            after_p_adjusted=level.p_adjusted[place],
        )
    return GroupsChange(
        from_=from_,
        n=int((both.sum(1) > 1).sum()),
        p_value=alike.p_value,
        p_adjusted=None,
        groups=found,
        least=_least(found),
    )


def _least(found: Mapping[str, GroupChange]) -> list[str]:
    """Groups that gained less, and are left with more. One that had little to lose gains little, and is none."""
    behind = {
        group: one.against_others
        for group, one in found.items()
        if _above(one.against_others, one.p_adjusted) and _above(one.after_against_others, one.after_p_adjusted)
    }
    return sorted(behind, key=lambda group: -(behind[group] or 0.0))


def _above(value: float | None, p_adjusted: float | None) -> bool:
    return value is not None and value > 0 and p_adjusted is not None and p_adjusted < LEVEL
