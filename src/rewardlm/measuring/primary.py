"""One outcome is fixed before anyone sees a result, and the other tests are corrected for how many they are.

If you look at five splits by four judges, you are likely to find something in one of them. So a measurement or an
experiment records, when it starts, which one counts (its primary outcome). Every other test belongs to a family that
is read together, and its ``p_adjusted`` is corrected for it (Holm).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rewardlm.errors import RunError
from rewardlm.measuring.comparison import METRICS, Change, Excess, ModelSummary, Primary, PrimaryFixed, main_names
from rewardlm.measuring.independence import is_independent, was_reward
from rewardlm.measuring.measured import Measured
from rewardlm.scoring.lineage import kinship, lineage_of
from rewardlm.stats import holm

_LOW, _HIGH = 0, 2
_PARTS = ("scorer", "split", "metric")


def choose(
    runs: Sequence[Measured], asked: Mapping[str, str | None] | None, *, has_toxic_prompts: bool
) -> tuple[Primary | None, PrimaryFixed]:
    """The primary outcome, and when it was fixed.

    ``before``: every run recorded it when it started. ``afterwards``: no run did, so it is what was ``asked`` for now,
    or what the rule gives. ``differs``: it isn't what the runs recorded, or they don't agree.

    The rule: the first judge that is no relative of a reward, else the first that was no reward, else the first; toxic
    prompts if there are any; the toxic share. It also fills in what a run didn't record. Without a judge of all runs,
    the outcome is None.

    Raises RunError if a judge is asked for that doesn't judge all runs.
    """
    # If --scorer NAME.label picked a further label of a judge, its main label isn't there.
    names = runs[0].judges or list(runs[0].scores)
    shared = [name for name in names if all(name in run.scores for run in runs)]
    if not shared:
        return None, PrimaryFixed(
            when="afterwards", sentence="No judge saw all models, so there is no primary outcome."
        )
    wanted = {part: value for part, value in (asked or {}).items() if value is not None}
    if "scorer" in wanted and not all(wanted["scorer"] in run.scores for run in runs):
        raise RunError(
            f"primary.scorer {wanted['scorer']!r} doesn't judge every run: expected one of {', '.join(shared)}, or run "
            "rewardlm score first"
        )
    recorded = [recorded_by(run) for run in runs]
    agreed = recorded[0] if all(one == recorded[0] for one in recorded) else {}
    usable = "scorer" not in agreed or all(agreed["scorer"] in run.scores for run in runs)
    fixed = {**_by_rule(runs, shared), **(agreed if usable else {})}
    primary = {**fixed, **wanted}
    if not has_toxic_prompts:
        fixed, primary = _on_all(fixed), _on_all(primary)
    if not any(recorded):
        how = "it was asked for in this comparison" if wanted else "by rule, from the judges that there are"
        when = PrimaryFixed(
            when="afterwards",
            sentence=f"It was chosen after measuring ({how}): no run recorded one when it started.",
        )
    elif not agreed or not usable or primary != fixed:
        said = "; ".join(dict.fromkeys(_in_words(one) for one in recorded))
        when = PrimaryFixed(when="differs", sentence=f"It is not what the runs recorded when they started ({said}).")
    else:
        when = PrimaryFixed(when="before", sentence="It was fixed when the measurement started.")
    return Primary.model_validate(primary), when


def recorded_by(run: Measured) -> dict[str, str]:
    """What the run fixed when it started; nothing where nobody fixed anything."""
    found = run.meta.get("primary") or run.meta["settings"].get("primary") or {}
    return {part: str(found[part]) for part in _PARTS if found.get(part) is not None}


def spelt_out(asked: Mapping[str, str | None], judges: Sequence[str], rewards: Sequence[str]) -> dict[str, str]:
    """``asked``, with the missing parts filled in by the rule, as far as it is known before there is any answer."""
    given = {part: value for part, value in asked.items() if value is not None}
    return {
        "scorer": independent_of(judges, rewards),
        "split": "toxic_prompts",
        "metric": "toxic_fraction",
        **given,
    }


def independent_of(judges: Sequence[str], rewards: Sequence[str]) -> str:
    """The first of ``judges`` that is known to be no relative of ``rewards``; else the first that is none of them; else
    the first.
    """
    free = [judge for judge in judges if not was_reward(judge, rewards)]
    lineages = [lineage_of(reward) for reward in rewards]
    for judge in free:
        own = lineage_of(judge)
        if not rewards or (own.known and all(other.known and not kinship(own, other) for other in lineages)):
            return judge
    return (free or judges)[0]


def adjust(changes: Sequence[Change], primary: Primary | None) -> list[Change]:
    """``changes`` with ``p_adjusted``, ``mean_p_adjusted`` and so on: their p-values, corrected by Holm's method.

    A family is one number (such as the toxic share) over all models, judges and splits. The further labels of judges,
    which tables leave out, are a family of their own. So is the primary outcome, with one test per model. The worst
    case of the unscored has the families of the toxic share. For flows, only the claim that answers went from high to
    low is tested: a family over models and judges, split by split.
    """
    main = main_names({change.scorer for change in changes})
    updates: list[dict[str, Any]] = [{} for _ in changes]
    for metric, prefix in (*METRICS.items(), ("toxic_fraction", "delta_worst_")):
        families: dict[object, list[int]] = {}
        for place, change in enumerate(changes):
            own = {"scorer": change.scorer, "split": change.split, "metric": metric}
            is_primary = primary is not None and own == primary.model_dump()
            families.setdefault("primary" if is_primary else change.scorer in main, []).append(place)
        for places in families.values():
            p_values = holm([getattr(changes[place], f"{prefix}p_value") for place in places])
            for place, adjusted in zip(places, p_values, strict=True):
                updates[place][f"{prefix}p_adjusted"] = adjusted
    flows: dict[object, list[tuple[int, list[list[Excess | None]], Excess]]] = {}
    for place, change in enumerate(changes):
        rows = [list(row) for row in change.flow_excess or ()]
        cell = rows[_HIGH][_LOW] if rows else None
        if cell is not None:
            flows.setdefault((change.split, change.scorer in main), []).append((place, rows, cell))
    for claims in flows.values():
        for (place, rows, cell), adjusted in zip(claims, holm([cell.p_value for _, _, cell in claims]), strict=True):
            rows[_HIGH][_LOW] = cell.model_copy(update={"p_adjusted": adjusted})
            updates[place]["flow_excess"] = rows
    return [change.model_copy(update=update) for change, update in zip(changes, updates, strict=True)]


def adjust_models(models: Sequence[ModelSummary]) -> list[ModelSummary]:
    """The same for changes in which no judge of toxicity takes part: each number is a family over the models."""
    adjusted = list(models)
    for key, ending in (("counter_narrative_change", ""), ("counter_narrative_change", "_over_null"),
                        ("truncated_change", ""), ("over_refusal_change", "")):  # fmt: skip
        places = [place for place, model in enumerate(adjusted) if getattr(model, key) is not None]
        changes = [getattr(adjusted[place], key) for place in places]
        p_values = holm([getattr(change, f"p_value{ending}") for change in changes])
        for place, change, p_value in zip(places, changes, p_values, strict=True):
            changed = change.model_copy(update={f"p_adjusted{ending}": p_value})
            adjusted[place] = adjusted[place].model_copy(update={key: changed})
    # Utility is one question, asked by several tasks.
    of_utility = iter(holm([change.p_value for model in models for change in model.utility_change.values()]))
    return [
        model.model_copy(
            update={
                "utility_change": {
                    task: change.model_copy(update={"p_adjusted": next(of_utility)})
                    for task, change in model.utility_change.items()
                }
            }
        )
        for model in adjusted
    ]


def _by_rule(runs: Sequence[Measured], judges: Sequence[str]) -> dict[str, str]:
    rewards = [reward for run in runs for reward in run.rewards]
    free = [judge for judge in judges if not was_reward(judge, rewards)]
    independent = [judge for judge in free if all(is_independent(run, judge) for run in runs)]
    scorer = (independent or free or judges)[0]
    return {"scorer": scorer, "split": "toxic_prompts", "metric": "toxic_fraction"}


def _on_all(primary: dict[str, str]) -> dict[str, str]:
    """If no prompt is toxic, an outcome on toxic prompts is taken on all of them."""
    return {**primary, "split": "all"} if primary["split"] == "toxic_prompts" else primary


def _in_words(recorded: Mapping[str, str]) -> str:
    return ", ".join(f"{part} {value}" for part, value in recorded.items()) or "nothing"
