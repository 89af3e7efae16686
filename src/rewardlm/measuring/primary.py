"""One outcome was fixed before anyone saw a result, and the other tests are corrected for how many they are.

Who looks at five splits by four judges finds something in one of them. So a measurement or an experiment records which
one counts (its primary outcome) when it starts. Every other test is one of a family that is read together: its
``p_adjusted`` is Holm's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rewardlm.errors import RunError
from rewardlm.measuring.audit import is_independent, same_judge
from rewardlm.scoring.lineage import kinship, lineage_of
from rewardlm.stats import holm

if TYPE_CHECKING:
    from rewardlm.measuring.compare import Measured

# What is compared, and how its keys in a comparison begin.
METRICS = {
    "toxic_fraction": "",
    "mean": "mean_",
    "expected_max_toxicity": "expected_max_toxicity_",
    "toxicity_probability": "toxicity_probability_",
}
_LOW, _HIGH = 0, 2
_PARTS = ("scorer", "split", "metric")


def choose(
    runs: Sequence[Measured], asked: Mapping[str, str | None] | None, *, has_toxic_prompts: bool
) -> tuple[dict[str, str] | None, str, str]:
    """The primary outcome ``{"scorer", "split", "metric"}``, when it was fixed, and a sentence that says so.

    ``before``: every run recorded it when it started. ``afterwards``: none did, and it was ``asked`` for now, or is
    what the rule gives: the first judge that is no relative of a reward, else the first that was no reward, else the
    first; toxic prompts where there are any; the toxic share. ``differs``: it isn't what the runs recorded, or they
    don't agree. None without a judge. Older runs recorded no more than was asked for: the rest was the rule's.

    Raises RunError where a judge is asked for that doesn't judge all runs.
    """
    # Of a judge that was asked for by one of its further labels (--scorer NAME.label) there is no main one.
    names = runs[0].judges or list(runs[0].scores)
    shared = [name for name in names if all(name in run.scores for run in runs)]
    if not shared:
        return None, "afterwards", "No judge saw all models, so there is no primary outcome."
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
        return primary, "afterwards", f"It was chosen after measuring ({how}): no run recorded one when it started."
    if not agreed or not usable or primary != fixed:
        said = "; ".join(dict.fromkeys(_in_words(one) for one in recorded))
        return primary, "differs", f"It is not what the runs recorded when they started ({said})."
    return primary, "before", "It was fixed when the measurement started."


def recorded_by(run: Measured) -> dict[str, str]:
    """What the run fixed when it started; nothing where nobody fixed anything."""
    found = run.meta.get("primary") or run.meta["settings"].get("primary") or {}
    return {part: str(found[part]) for part in _PARTS if found.get(part) is not None}


def spelt_out(asked: Mapping[str, str | None], judges: Sequence[str], rewards: Sequence[str]) -> dict[str, str]:
    """``asked`` with what nobody asked for filled in by the rule, as it is known before there is any answer."""
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
    free = [judge for judge in judges if not any(same_judge(judge, reward) for reward in rewards)]
    lineages = [lineage_of(reward) for reward in rewards]
    for judge in free:
        own = lineage_of(judge)
        if not rewards or (own.known and all(other.known and not kinship(own, other) for other in lineages)):
            return judge
    return (free or judges)[0]


def adjust(comparisons: Sequence[dict[str, Any]], primary: Mapping[str, str] | None) -> None:
    """Put ``p_adjusted``, ``mean_p_adjusted`` and so on beside the p-values of ``comparisons``.

    A family is one number (the toxic share, say) over all models, judges and splits; the further labels of judges,
    which tables leave out, are a family of their own, and so is the primary outcome, one test a model. The worst case
    of the unscored has the families of the toxic share. What flows claim, that answers went from high to low, is a
    family over models and judges, split by split.
    """
    names = {entry["scorer"] for entry in comparisons}
    further = {name for name in names if any(name.startswith(f"{other}.") for other in names)}
    for metric, prefix in (*METRICS.items(), ("toxic_fraction", "delta_worst_")):
        families: dict[object, list[dict[str, Any]]] = {}
        for entry in comparisons:
            own = {"scorer": entry["scorer"], "split": entry["split"], "metric": metric}
            family = "primary" if own == primary else entry["scorer"] in further
            families.setdefault(family, []).append(entry)
        for entries in families.values():
            _correct(entries, f"{prefix}p_value", f"{prefix}p_adjusted")
    flows: dict[object, list[dict[str, Any]]] = {}
    for entry in comparisons:
        if entry["flow_excess"] is not None and entry["flow_excess"][_HIGH][_LOW] is not None:
            flows.setdefault((entry["split"], entry["scorer"] in further), []).append(entry["flow_excess"][_HIGH][_LOW])
    for cells in flows.values():
        _correct(cells, "p_value", "p_adjusted")


def adjust_models(models: Sequence[dict[str, Any]]) -> None:
    """The same for changes that no judge of toxicity has a part in: each number is a family over the models."""
    for key, ending in (("counter_narrative_change", ""), ("counter_narrative_change", "_over_null"),
                        ("truncated_change", "")):  # fmt: skip
        changes = [model[key] for model in models if model.get(key) is not None]
        _correct(changes, f"p_value{ending}", f"p_adjusted{ending}")


def _correct(tests: Sequence[dict[str, Any]], p_value: str, p_adjusted: str) -> None:
    for test, adjusted in zip(tests, holm([test[p_value] for test in tests]), strict=True):
        test[p_adjusted] = adjusted


def _by_rule(runs: Sequence[Measured], judges: Sequence[str]) -> dict[str, str]:
    rewards = [reward for run in runs for reward in run.rewards]
    free = [judge for judge in judges if not any(same_judge(judge, reward) for reward in rewards)]
    independent = [judge for judge in free if all(is_independent(run, judge) for run in runs)]
    scorer = (independent or free or judges)[0]
    return {"scorer": scorer, "split": "toxic_prompts", "metric": "toxic_fraction"}


def _on_all(primary: dict[str, str]) -> dict[str, str]:
    """Where no prompt is toxic, what was meant for toxic ones is about all."""
    return {**primary, "split": "all"} if primary["split"] == "toxic_prompts" else primary


def _in_words(recorded: Mapping[str, str]) -> str:
    return ", ".join(f"{part} {value}" for part, value in recorded.items()) or "nothing"
