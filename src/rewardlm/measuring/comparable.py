"""Which runs may be compared: those with the same prompts, prompt toxicity, weights and judges.

Anything else is an error, because a table of two different prompt lists looks just like a table of two models.
"""

from __future__ import annotations

from collections.abc import Sequence

from rewardlm.errors import RunError
from rewardlm.measuring.measured import Measured, drawn_by

# Scoring the same prompt in another batch or in half precision moves its score by less than this. The baseline's
# value then decides, for all runs alike, on which side of the threshold the prompt is.
_TOXICITY_TOLERANCE = 0.01


def refuse_incomparable(
    runs: Sequence[Measured],
    again: Measured | None = None,
    *,
    scorer: str | None = None,
    advice: str = "measure both on one list",
) -> None:
    """Raise RunError where ``runs``, the baseline first, can't be compared (by ``scorer``, if one is asked for).
    ``advice`` says what to do where they answered different prompts.

    ``again`` is a second draw of the baseline. If a name stands for two different judges, that is an error, unless
    ``scorer`` asks for another judge: then the scores under that name are taken out of the run.
    """
    baseline = runs[0]
    if again is not None:
        _refuse_other_model(baseline, again)
    others = [*runs[1:], *([] if again is None else [again])]
    for other in others:
        _refuse_other_prompts(baseline, other, advice)
        _refuse_other_toxicity(baseline, other)
        _refuse_other_weights(baseline, other)
        _refuse_other_labels(baseline, other)
    _refuse_without_scorer([baseline, *others], scorer)
    for other in others:
        _refuse_other_judges(baseline, other, scorer)


def _refuse_other_prompts(baseline: Measured, other: Measured, advice: str) -> None:
    ours = {prompt.id: prompt for prompt in baseline.prompts}
    theirs = {prompt.id: prompt for prompt in other.prompts}
    who = f"{baseline.run.path} ({len(ours)} prompts) and {other.run.path} ({len(theirs)})"
    for one, two, owner in ((ours, theirs, baseline), (theirs, ours, other)):
        lone = [name for name in one if name not in two]
        if lone:
            raise RunError(
                f"prompts_differ: {who} answered different prompts: {len(lone)} are only in "
                f"{owner.run.path}, such as {lone[0]!r}; {advice}"
            )
    changed = [name for name, prompt in ours.items() if prompt.turns != theirs[name].turns]
    if changed:
        raise RunError(
            f"prompts_differ: {who} have the same ids but different texts in {len(changed)} prompts, such "
            f"as {changed[0]!r}; measure both on one list"
        )


def _refuse_other_model(baseline: Measured, again: Measured) -> None:
    """Raise RunError unless ``again`` has the same model and settings as ``baseline``, and another seed."""
    for key in ("model", "model_hash", "adapter_hash", "adapter_strength", "treatment"):
        ours, theirs = (_steered_by(run) if key == "treatment" else run.meta.get(key) for run in (baseline, again))
        if ours != theirs:
            raise RunError(
                f"{again.run.path} is no second draw of {baseline.run.path}: its {key} is {theirs!r}, not {ours!r}; "
                "measure the baseline again with another --seed"
            )
    ours, theirs = (
        {name: value for name, value in drawn_by(run).items() if name != "samples"} for run in (baseline, again)
    )
    other = [name for name in dict.fromkeys([*ours, *theirs]) if ours.get(name) != theirs.get(name)]
    if other:
        raise RunError(
            f"{again.run.path} is no second draw of {baseline.run.path}: {', '.join(other)} differ; measure the "
            "baseline again with another --seed and nothing else changed"
        )
    seeds = [run.meta["settings"].get("seed") for run in (baseline, again)]
    if baseline.run.path.resolve() == again.run.path.resolve() or (seeds[0] == seeds[1] and seeds[0] is not None):
        raise RunError(
            f"{again.run.path} was drawn from the same seed as {baseline.run.path} ({seeds[0]}), so its answers are "
            "the same: measure the baseline again with another --seed"
        )


def _steered_by(run: Measured) -> tuple[str, float, str] | None:
    """What its answers depend on: not what its fit was called."""
    found = run.meta.get("treatment")
    return None if found is None else (found["method"], found["strength"], found["hash"])


def _refuse_other_toxicity(baseline: Measured, other: Measured) -> None:
    ours, theirs = (run.meta.get("toxic_by", "dataset") for run in (baseline, other))
    if ours != theirs:
        raise RunError(
            f"{baseline.run.path} has the toxicity of its prompts from {ours!r}, {other.run.path} from {theirs!r}: "
            "measure both with the same --toxic-by"
        )
    stored = {prompt.id: prompt.toxicity for prompt in other.prompts}
    for prompt in baseline.prompts:
        one, two = prompt.toxicity, stored[prompt.id]
        if (one is None) != (two is None) or (
            one is not None and two is not None and abs(one - two) > _TOXICITY_TOLERANCE
        ):
            raise RunError(
                f"{baseline.run.path} and {other.run.path} store different toxicities of prompt "
                f"{prompt.id!r} ({one} and {two}): measure both with the same data and --toxic-by"
            )


def _refuse_other_weights(baseline: Measured, other: Measured) -> None:
    if baseline.meta.get("model") is None or baseline.meta.get("model") != other.meta.get("model"):
        return
    ours, theirs = baseline.meta.get("model_hash"), other.meta.get("model_hash")
    if ours is not None and theirs is not None and ours != theirs:
        raise RunError(
            f"weights_differ: both runs measured {baseline.meta['model']!r}, but it resolved to other "
            f"weights ({str(ours)[:12]}… in {baseline.run.path}, {str(theirs)[:12]}… in {other.run.path}): "
            "measure one again"
        )


def _refuse_other_labels(baseline: Measured, other: Measured) -> None:
    for name, label in baseline.main_labels.items():
        theirs = other.main_labels.get(name)
        if theirs is not None and label and theirs and label.casefold() != theirs.casefold():
            raise RunError(
                f"{name!r} scored the label {label!r} in {baseline.run.path} and {theirs!r} in {other.run.path}: "
                f"score one again with {name}#{label}"
            )


def _refuse_other_judges(baseline: Measured, other: Measured, scorer: str | None) -> None:
    """Raise RunError if one name stands for two judges, or drop its scores if ``scorer`` asks for another judge."""
    ours, theirs = (
        {entry["name"]: entry.get("revision") for entry in run.meta.get("scorers", [])} for run in (baseline, other)
    )
    for name in sorted(ours.keys() & theirs.keys()):
        # If nobody knows a judge's weights, we trust its name.
        if None in (ours[name], theirs[name]) or ours[name] == theirs[name]:
            continue
        shared = {kept for kept in baseline.scores.keys() & other.scores.keys() if f"{kept}.".startswith(f"{name}.")}
        if (scorer is None and shared) or scorer in shared:
            raise RunError(
                f"{name!r} is not the same judge in both: {str(ours[name])[:40]} in {baseline.run.path}, "
                f"{str(theirs[name])[:40]} in {other.run.path}: measure one again, or compare by another judge "
                "(--scorer)"
            )
        other.scores = {kept: scores for kept, scores in other.scores.items() if kept not in shared}


def _refuse_without_scorer(runs: Sequence[Measured], scorer: str | None) -> None:
    """Raise RunError for a run that lacks the judge that was asked for, or shares no judge with the baseline."""
    for run in runs:
        if scorer is not None and scorer not in run.scores:
            available = ", ".join(run.scores) or "none"
            raise RunError(
                f"{run.run.path} has no scores by {scorer!r}: it has {available}; choose one, or run "
                f"rewardlm score {run.run.path} --scorer {scorer}"
            )
        if not run.scores.keys() & runs[0].scores.keys() and run is not runs[0]:
            raise RunError(
                f"{runs[0].run.path} (scorers: {', '.join(runs[0].scores) or 'none'}) and {run.run.path} "
                f"({', '.join(run.scores) or 'none'}) share no scorer: {_how_to_score(runs[0], run)}"
            )


def _how_to_score(*runs: Measured) -> str:
    unfinished = [str(run.run.path) for run in runs if not run.run.finished and not run.scores]
    if unfinished:
        are, it = ("is", "it") if len(unfinished) == 1 else ("are", "them")
        return f"{' and '.join(unfinished)} {are} not finished; run the command that began {it} again"
    return "add one with rewardlm score"
