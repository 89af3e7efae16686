"""The texts a judge is made from: those of all sources, each once, and which of them train, stop and calibrate it."""

from __future__ import annotations

import dataclasses
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from rewardlm.config import data_folder
from rewardlm.data.split import Share, wording
from rewardlm.errors import DataError
from rewardlm.judges.preferences import PreferencePair, is_preference_file, load_preferences
from rewardlm.judges.settings import JudgeTrainSettings
from rewardlm.judges.suites import load_suite
from rewardlm.judges.texts import FILES, READINGS, LabelledSet, LabelledText, load_labelled, measuring_prompts
from rewardlm.scoring.record import Source


@dataclass(frozen=True, slots=True)
class Corpus:
    """The texts that train a judge, those that stop its training, those that calibrate it, and their sources.

    ``calibration`` holds the texts held out for it, and the validation texts. Judges that are distilled into this one
    may have learnt from the latter, so with distillation only sources that hold nothing out add theirs. ``unseen`` are
    the wordings that the judge must not learn: held out, excluded, for validation, prompts that models are measured on,
    and another judge's share.
    """

    train: list[LabelledText]
    validation: list[LabelledText]
    calibration: list[LabelledText]
    preferences: list[PreferencePair]
    sources: list[Source]
    unseen: frozenset[str]

    @property
    def texts(self) -> set[str]:
        """All texts that the judge reads unchanged: to learn, to validate or to calibrate."""
        labelled = {text.text for text in [*self.train, *self.validation, *self.calibration]}
        return labelled | {text for pair in self.preferences for text in (pair.chosen, pair.rejected)}

    def __str__(self) -> str:
        """How many texts, by source."""
        counts = Counter(text.source for text in self.train)
        named = ", ".join(f"{source} {count:,}" for source, count in counts.most_common())
        sentence = f"{len(self.train):,} texts to train on ({named}), {len(self.validation):,} to validate"
        if self.preferences:
            sentence += f", {len(self.preferences):,} preference pairs"
        return sentence


def load_corpus(settings: JudgeTrainSettings) -> Corpus:
    """The texts of all sources: neither held out nor excluded, each once, with a part for validation.

    Near duplicates are one text (``data.split.wording``). A text that two sources judge has both judgements; where both
    judge one label, the first source's stands. Prompts that models are measured on are left out, and so are the
    texts of another judge's ``share``. Raises DataError where nothing is left.
    """
    excluded = measuring_prompts()
    for source in settings.exclude:
        excluded |= {wording(text.text) for text in load_suite(source).texts}
    sets: list[LabelledSet] = []
    preferences: list[PreferencePair] = []
    of_preferences: list[Source] = []
    for source in settings.data:
        if is_preference_file(source):
            pairs, file = load_preferences(source)
            kept = [pair for pair in pairs if not {wording(pair.chosen), wording(pair.rejected)} & excluded]
            preferences += kept
            of_preferences.append(dataclasses.replace(file, texts=2 * len(kept)))
        else:
            sets += load_labelled(source)
    if settings.share != "all":
        excluded |= _of_others(settings.share, sets)
    forbidden = excluded | {wording(text.text) for found in sets for text in found.held_out}
    texts, came_from = _merged(sets, forbidden, settings.labels)
    draw = random.Random(settings.seed)
    draw.shuffle(texts)
    texts = _within(texts, settings.limits)[: settings.limit]
    n_validation = round(settings.validation * len(texts))
    if not preferences and (n_validation == 0 or n_validation == len(texts)):
        raise DataError(
            f"{', '.join(settings.data)}: {len(texts)} texts with a label are left to train on, and validation needs "
            f"{settings.validation:.0%} of them: give more data"
        )
    used = Counter(came_from[wording(text.text)] for text in texts)
    sources = [
        Source(found.kind, found.sha256, found.licence, used[number])
        for number, found in enumerate(sets)
        if used[number]
    ]
    validation = texts[:n_validation]
    unseen = frozenset(forbidden | {wording(text.text) for text in validation})
    calibration = [text for found in sets for text in found.calibration if wording(text.text) not in excluded]
    draw.shuffle(calibration)
    covered = {text.source for text in calibration} if settings.distil else set()
    calibration = calibration[: settings.limit] + [text for text in validation if text.source not in covered]
    return Corpus(texts[n_validation:], validation, calibration, preferences, [*sources, *of_preferences], unseen)


def _merged(
    sets: Sequence[LabelledSet], forbidden: Set[str], labels: Sequence[str]
) -> tuple[list[LabelledText], dict[str, int]]:
    """The training texts of all sets, each once, with those of ``labels`` that somebody judged, and the number of
    the set that each wording came from.
    """
    merged: dict[str, LabelledText] = {}
    came_from: dict[str, int] = {}
    for number, found in enumerate(sets):
        for text in found.training:
            judged = {label: value for label, value in text.labels.items() if label in labels}
            key = wording(text.text)
            if key in forbidden or not judged:
                continue
            if (before := merged.get(key)) is not None:
                judged, text = {**judged, **before.labels}, before
            merged[key] = dataclasses.replace(text, labels=judged)
            came_from.setdefault(key, number)
    return list(merged.values()), came_from


def _within(texts: Sequence[LabelledText], limits: Mapping[str, int]) -> list[LabelledText]:
    """As many texts of a source as its limit allows: the first ones."""
    counts: Counter[str] = Counter()
    kept = []
    for text in texts:
        counts[text.source] += 1
        if counts[text.source] <= limits.get(text.source, len(texts)):
            kept.append(text)
    return kept


def _of_others(share: Share, sets: Sequence[LabelledSet]) -> set[str]:
    """The wordings that a judge of this share must not read: all that another judge may read or is evaluated on.

    Published sets on this machine count even if this judge doesn't learn from them, because two sets may hold the same
    text. Neither judge reads a text whose rows belong to both shares.
    """
    folder = data_folder()
    here = [
        name
        for name, files in {**FILES, **READINGS}.items()
        if folder is not None and all((folder / file).is_file() for file in files)
    ]
    known = [*sets, *(found for name in here for found in load_labelled(name))]
    return {
        wording(text.text)
        for found in known
        for text in found.texts
        if text.share != share or (text.held_out and not text.calibrates)
    }


def balance(texts: Sequence[LabelledText]) -> dict[str, float]:
    """The weight of a text, by source: together, a source's texts weigh as the square root of their number.

    So 20,000 tweets don't outvote 3,000 scored sentences. The mean weight of a text is 1.
    """
    counts = Counter(text.source for text in texts)
    roots = {source: math.sqrt(count) for source, count in counts.items()}
    scale = sum(counts.values()) / sum(roots.values())
    return {source: roots[source] * scale / count for source, count in counts.items()}
