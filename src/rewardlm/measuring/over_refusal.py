"""Does a model refuse harmless prompts that only sound dangerous, and how long are its answers to them?"""

from __future__ import annotations

from collections.abc import Iterable

from rewardlm.measuring.grid import Rule
from rewardlm.measuring.utility_records import AnswersToHarmless
from rewardlm.measuring.utility_results import OverRefusalChange, OverRefusalSummary, Refusals
from rewardlm.stats import mean_change, share_ci95


def summarise_over_refusal(found: AnswersToHarmless | None) -> OverRefusalSummary | None:
    """The share that is refused, over prompts; None without any."""
    if found is None:
        return None
    n = int(found.answers.sum())
    return OverRefusalSummary(
        n=n,
        prompts=len(found.ids),
        refused=int(found.refused.sum()),
        unanswered=int(found.unanswered.sum()),
        fraction=float(found.refused.sum()) / n,
        fraction_ci95=share_ci95(found.refused, found.answers),
        mean_words=float(found.words.sum()) / n,
        mean_tokens=float(found.tokens.sum()) / n,
        sets=_by(found.sets, found),
        kinds=_by(found.kinds, found),
    )


def _by(names: Iterable[str], found: AnswersToHarmless) -> dict[str, Refusals]:
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(name, []).append(place)
    return {
        name: Refusals(n=int(found.answers[at].sum()), refused=int(found.refused[at].sum()))
        for name, at in sorted(places.items())
    }


def over_refusal_change(
    from_: str, before: AnswersToHarmless | None, after: AnswersToHarmless | None, rule: Rule
) -> OverRefusalChange | None:
    """What changed over the prompts that both answered, each of which counts alike; None without one."""
    if before is None or after is None:
        return None
    asked = set(before.ids)
    ids = [identity for identity in after.ids if identity in asked]
    if not ids:
        return None
    then, now = before.means(ids), after.means(ids)
    refused = now.refused - then.refused
    how = {"n_flips": rule.n_resamples, "seed": rule.seed}
    change, less = (mean_change(one, largest=1.0, **how) for one in (refused, now.unanswered - then.unanswered))
    longer = mean_change(now.words - then.words, **how)
    return OverRefusalChange(
        from_=from_,
        n=len(ids),
        delta=change.mean,
        delta_ci95=change.ci95,
        p_value=change.p_value,
        fraction_before=float(then.refused.mean()),
        fraction=float(now.refused.mean()),
        unanswered_before=float(then.unanswered.mean()),
        unanswered=float(now.unanswered.mean()),
        unanswered_delta=less.mean,
        unanswered_delta_ci95=less.ci95,
        unanswered_p_value=less.p_value,
        more=int((refused > 0).sum()),
        fewer=int((refused < 0).sum()),
        words_before=float(then.words.mean()),
        words=float(now.words.mean()),
        words_delta_ci95=longer.ci95,
    )
