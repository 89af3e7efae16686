"""Everything that is asked about a model's inside, in one call: ``examine``.

The first subject is the base; the others are adapters on it, which share its weights. Row i of every subject is an
answer to prompt i. Comparisons of models are made on the same text, the base's own answers, so that what differs is how
it is read and not what was read. The result is plain numbers, lists and strings, ready for JSON, and what the report
shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from rewardlm.config import InsideSettings
from rewardlm.errors import ModelError
from rewardlm.interpreting import directions
from rewardlm.interpreting.causal import change_between
from rewardlm.interpreting.intervals import FEWEST, adjust, shown
from rewardlm.interpreting.reading import (
    TOXIC_ABOVE,
    Reading,
    Redrawn,
    follow_path,
    read_adapter,
    read_directions,
    read_stream,
)
from rewardlm.interpreting.reading import Subject as Subject
from rewardlm.interpreting.residual import Contrast, contrast_direction, layout_of, vocabulary_covariance
from rewardlm.interpreting.tokens import Judge, contrast_by, contrast_of_words
from rewardlm.interpreting.trying import try_all
from rewardlm.interpreting.vectors import RATIOS, ablate_vectors, bounds, read_vectors, takes_more
from rewardlm.models.load import Policy
from rewardlm.models.lora import using
from rewardlm.stats import LEVEL

Report = Callable[[int, int, str], None]


def examine(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    subjects: Sequence[Subject],
    judge: Judge,
    settings: InsideSettings,
    *,
    word_judge: Judge | None = None,
    labelled: Sequence[Reading] = (),
    redrawn: Sequence[Redrawn] = (),
    report: Report | None = None,
) -> dict[str, Any]:
    """Take ``subjects`` apart. ``prompts`` are token ids; ``judge`` gives P(toxic) of texts, None where it can't.

    ``word_judge`` chooses the toxic words where the settings name none; it is asked about tens of thousands of words,
    so it should be a quick one (None: ``judge``). ``labelled`` are more answers of the base, or toxic texts of
    any origin, as (prompt, response, toxicity), for the probe to learn from beside the base's own here. ``redrawn`` are
    toxic and harmless answers of the base to one prompt each: without any, whether a model came to prefer less toxic
    answers, or only its own, stays open.
    ``report(done, total, what)``.

    Raises ModelError if the first subject isn't the base, an adapter is missing, rows don't fit, nothing can be read,
    or the family isn't known (see interpreting.residual). The model is left as it was found.
    """
    _check(policy, prompts, subjects)
    progress = _Progress(report, len(subjects), bool(settings.causal_prompts))
    layout = layout_of(policy.causal_lm)
    base, tuned = subjects[0], subjects[1:]
    usable = [row for row, response in enumerate(base.responses) if response]
    focus, focus_is_toxic = _focus(base, usable)
    notes = []
    progress.step("the words whose logits are compared")
    contrast = _contrast(policy, word_judge or judge, settings)
    if contrast is None:
        notes.append("The vocabulary holds too few toxic words for a contrast of logits: name some in toxic_words.")
    progress.step("the probe")
    found, direction = read_directions(policy, prompts, base, labelled, settings)
    if direction is None:
        notes.append(f"No direction was sought: {found['reason']}.")
    by, towards, vectors = _value_vectors(policy, contrast, direction, settings)
    read = []
    for subject in subjects:
        progress.step(f"the residual stream of {subject.label}")
        read.append(read_stream(policy, prompts, base, subject, usable, focus, contrast, vectors, settings))
    result: dict[str, Any] = {
        "models": [subject.label for subject in subjects],
        "family": policy.causal_lm.config.model_type,
        "n_layers": len(layout.layers),
        "n_heads": layout.n_heads,
        "answers": len(usable),
        "focus": {"answers": len(focus), "toxic": focus_is_toxic},
        "words": _words(policy, contrast),
        "stream": {subject.label: one.summary for subject, one in zip(subjects, read, strict=True)},
        "directions": found,
        "vectors": read_vectors(policy, prompts, base, subjects, usable, vectors, towards, read, settings),
        "ablation": None,
        "adapters": {},
        "paths": {},
        "causal": None,
        "verdicts": {},
        "settings": settings.model_dump(mode="json"),
        "notes": notes,
    }
    if result["vectors"] is not None:
        result["vectors"]["by"] = by
    progress.step("the value vectors, silenced")
    result["ablation"] = ablate_vectors(policy, prompts, subjects, usable, focus, vectors, contrast, judge, settings)
    for subject in tuned:
        progress.step(f"what the adapter of {subject.label} wrote")
        result["adapters"][subject.label] = read_adapter(policy, prompts, base, subject, focus, contrast, settings)
        progress.step(f"the adapter of {subject.label} along its scale")
        result["paths"][subject.label] = follow_path(policy, prompts, base, subject, settings, redrawn)
    if settings.causal_prompts:
        progress.step("answers under changes")
        result["causal"] = try_all(
            policy,
            prompts,
            subjects,
            judge,
            settings,
            found.get("layer"),
            direction,
            report=lambda done, total: progress.within(f"answers under change {done} of {total}"),
        )
    changes = {
        subject.label: subject.change
        or change_between(base.toxicity, subject.toxicity, n_resamples=settings.n_resamples, seed=settings.seed)
        for subject in tuned
    }
    kept = {label: None if change is None else dict(change) for label, change in changes.items()}
    adjust(claims(result, kept))
    for label, change in kept.items():
        result["verdicts"][label] = _verdict(result, label, change, settings)
    progress.finish()
    return result


def _check(policy: Policy, prompts: Sequence[Sequence[int]], subjects: Sequence[Subject]) -> None:
    if not subjects or subjects[0].adapter is not None:
        raise ModelError("the first model must be the base, without an adapter: what changed is told against it")
    for subject in subjects:
        with using(policy, subject.adapter):
            pass
        if not len(subject.responses) == len(subject.toxicity) == len(prompts):
            raise ModelError(
                f"{subject.label}: {len(prompts)} prompts, {len(subject.responses)} answers and "
                f"{len(subject.toxicity)} scores: expected as many of each"
            )
    if not any(subjects[0].responses):
        raise ModelError(f"{subjects[0].label} has no answer with any token: there is nothing to read")


class _Progress:
    """Counts the parts of an examination for ``report``."""

    def __init__(self, report: Report | None, n_subjects: int, causal: bool) -> None:
        self._report, self._done = report, -1
        self._total = 3 + n_subjects + 2 * (n_subjects - 1) + causal

    def step(self, what: str) -> None:
        self._done += 1
        if self._report is not None:
            self._report(self._done, self._total, what)

    def within(self, what: str) -> None:
        """Say how far a part is that counts as one."""
        if self._report is not None:
            self._report(self._done, self._total, what)

    def finish(self) -> None:
        if self._report is not None:
            self._report(self._total, self._total, "")


def _focus(base: Subject, usable: Sequence[int]) -> tuple[list[int], bool]:
    """Rows of the base's toxic answers, and True; of its most toxic third, and False, if fewer than three are toxic."""
    scored = [(toxicity, row) for row in usable if (toxicity := base.toxicity[row]) is not None]
    toxic = [row for toxicity, row in scored if toxicity > TOXIC_ABOVE]
    if len(toxic) >= 3:
        return toxic, True
    ranked = [row for _, row in sorted(scored, key=lambda pair: (-pair[0], pair[1]))]
    return sorted(ranked[: max(1, len(ranked) // 3)] or list(usable)), False


def _contrast(policy: Policy, judge: Judge, settings: InsideSettings) -> Contrast | None:
    if settings.toxic_words:
        return contrast_of_words(policy.tokenizer, settings.toxic_words, settings.neutral_words)
    return contrast_by(judge, policy.tokenizer, settings.token_words)


def _value_vectors(
    policy: Policy, contrast: Contrast | None, direction: Tensor | None, settings: InsideSettings
) -> tuple[str, Tensor | None, list[directions.ValueVector]]:
    """What value vectors are chosen by, that as a vector Float[M], and they; by the other if the one isn't there."""
    by_words = contrast is not None and (settings.vectors_by == "words" or direction is None)
    causal_lm = policy.causal_lm
    with using(policy, None):
        if by_words and contrast is not None:
            towards = contrast_direction(causal_lm, contrast)
            spread = vocabulary_covariance(causal_lm)
            found = directions.value_vectors(causal_lm, towards, number=settings.value_vectors, covariance=spread)
            return "words", towards, found
        if direction is None:
            return "direction", None, []
        unit = direction / direction.norm()
        return "direction", unit, directions.value_vectors(causal_lm, unit, number=settings.value_vectors)


def _words(policy: Policy, contrast: Contrast | None) -> dict[str, list[str]] | None:
    if contrast is None:
        return None
    return {
        "toxic": [policy.tokenizer.decode([token]).strip() for token in contrast.toxic],
        "neutral": [policy.tokenizer.decode([token]).strip() for token in contrast.neutral],
    }


# Below this median cosine with the base's, value vectors count as turned.
_TURNED_BELOW = 0.9


def claims(result: Mapping[str, Any], changes: Mapping[str, dict[str, Any] | None]) -> list[dict[str, Any]]:
    """The changes that verdicts and sentences rest on, which are read together: of every tuned model how toxicity
    changed and the preference along its path, and of every model what silencing takes beyond the random sets, where
    there are enough of these for a claim."""
    paths = [path["redraw"]["change"] for path in result["paths"].values() if path is not None and path["redraw"]]
    by_model = {} if result["ablation"] is None else result["ablation"]["by_model"]
    lost = [one for own in by_model.values() for one in own.values() if one and one["p_value_random"] is not None]
    found = [*changes.values(), *paths, *(one["beyond_random"] for one in lost)]
    return [one for one in found if one is not None]


def _verdict(
    result: dict[str, Any], label: str, change: dict[str, Any] | None, settings: InsideSettings
) -> dict[str, Any]:
    """The numbers that say what kind of change it was, and the kind they amount to; see interpreting.vectors.

    ``spread``: ``localised`` if at most a quarter of the layers carries 80 % of the preference for the base's harmless
    answers over its toxic ones, else ``distributed``; null where the adapter wasn't shown to have raised it.
    ``kind``: see ``_kind``; null where there are no value vectors to follow. ``reason`` says what is missing where it
    is ``cannot_tell``.
    ``direction_used`` says whether the base's answers were shown to depend on the direction.
    """
    path, vectors = result["paths"][label], result["vectors"]
    fewest = path["fewest"] if path is not None and _prefers_harmless(path) else None
    spread = None
    if fewest is not None:
        spread = "localised" if fewest <= result["n_layers"] / 4 else "distributed"
    kind, reason, own = None, None, None
    if vectors is not None:
        own = vectors["by_model"][label]
        matter = vectors_matter(result)
        kind, reason = _kind(own, settings.push_margin, matter) if shown(change, -1) else ("unclear", None)
    return {
        "kind": kind,
        "reason": reason,
        "spread": spread,
        "toxicity_change": change,
        "vector_cosine": None if own is None else float(np.median(own["cosine"])),
        **{name: None if own is None else own[name] for name in RATIOS},
        "vectors_matter": vectors_matter(result),
        "direction_used": _direction_used(result),
        "fewest_layers": fewest,
        "n_layers": result["n_layers"],
    }


def _prefers_harmless(path: dict[str, Any]) -> bool:
    """Whether the adapter was shown to have raised the preference for the base's harmless second draws."""
    return path["redraw"] is not None and shown(path["redraw"]["change"], 1)


def _kind(own: Mapping[str, Any], margin: float, matter: bool | None) -> tuple[str, str | None]:
    """What became of the value vectors of a model whose toxicity fell, and what is missing where that can't be told.

    ``rewritten``: the adapter turned them (median cosine with the base's below 0.9), and so they push less.
    ``avoided``: they write as before and are set off less, the bypass of Lee et al. 2024. ``untouched``: they push as
    before, so what changed the output lies elsewhere. ``cannot_tell`` otherwise: "as before" needs the ratio's 95 %
    interval within the margin, "less" needs it below 1 and not within the margin, and more of a fall than any adapter
    of random weights of the same size brings about. Nothing is claimed of vectors that the base isn't shown to need.
    """
    if own["push_ratio"] is None:
        return "cannot_tell", (
            "on this text the base’s vectors don’t measurably push towards toxicity, or it has fewer than five prompts"
        )
    if matter is False:
        return "cannot_tell", (
            "silencing these vectors in the base was not shown to take more from the toxic words than silencing others "
            "as long"
        )
    write, read, push = own["write_ratio"], own["read_ratio"], own["push_ratio"]
    less = {name: _less(own, name) for name in RATIOS}
    if float(np.median(own["cosine"])) < _TURNED_BELOW:
        if less["write_ratio"]:
            return "rewritten", None
        return "cannot_tell", "the adapter turned the vectors, but what they write was not shown to be less toxic"
    low, high = bounds(margin)
    within = f"within {low:.2g} and {high:.3g}"
    if not write["as_before"]:
        return "cannot_tell", f"whether they write as before is not known: the interval of that ratio is not {within}"
    if push["as_before"]:
        return "untouched", None
    if less["read_ratio"]:
        return "avoided", None
    if read["ci95"][1] < 1:
        return "cannot_tell", "adapters of random weights as large make these vectors push as little"
    return "cannot_tell", (
        f"the interval of their push holds 1, so that less is not shown, and is not {within}, so that as before is not"
    )


def _less(own: Mapping[str, Any], name: str) -> bool:
    """Whether a ratio fell: below 1, not by so little that it counts as before, and further than by chance changes."""
    ratio, null = own[name], [one[name] for one in own["null"] if one[name] is not None]
    fell: bool = ratio["ci95"][1] < 1 and not ratio["as_before"] and all(ratio["mean"] < other for other in null)
    return fell


def vectors_matter(result: Mapping[str, Any]) -> bool | None:
    """Whether the base loses more with the named value vectors silenced than with others: over prompts, by the
    corrected p-value and the interval, and more than all but one in twenty of the random sets. Of the toxic words'
    logits, else of toxicity, whichever has a rank among these sets; null where there is none, or too few prompts."""
    if result["ablation"] is None:
        return None
    found = result["ablation"]["by_model"][result["models"][0]].values()
    ranked = [one for one in found if one is not None and one["p_value_random"] is not None]
    known = [one for one in ranked if one["beyond_random"]["ci95"] is not None and one["beyond_random"]["n"] >= FEWEST]
    return any(takes_more(one) for one in known) if known else None


def _direction_used(result: dict[str, Any]) -> bool | None:
    """Whether adding the direction to the base raises toxicity or ablating it lowers it: by a p-value that is corrected
    for all changes that were tried, and by more than random directions do (``trying``); null where it was not tried."""
    if result["causal"] is None or result["causal"]["direction_p_value"] is None:
        return None
    changes = {
        row["kind"]: row["change"]
        for row in result["causal"]["rows"]
        if row["model"] == result["models"][0] and row["change"] is not None
    }

    def sure(kind: str, sign: int) -> bool:
        change = changes[kind]
        return change["ci95"] is not None and change["p_adjusted"] < LEVEL and sign * change["mean"] > 0

    return bool((sure("add", 1) or sure("ablate", -1)) and result["causal"]["direction_p_value"] <= LEVEL)
