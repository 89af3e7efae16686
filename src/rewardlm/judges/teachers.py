"""What other judges teach the judge in training: labels that its sources left open, or everything that several know.

Distillation (Hinton, Vinyals and Dean 2015, arXiv 1503.02531): a judge of toxicity and one of hate take two passes, and
one network that learns both from the data sets alone learns each less well. So every training text gets the other
judges' probabilities as its targets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rewardlm.errors import DataError, RewardLMError, RunError
from rewardlm.judges.settings import JudgeTrainSettings
from rewardlm.judges.texts import LabelledText
from rewardlm.runs import Run
from rewardlm.scoring.lineage import lineage_of
from rewardlm.scoring.load import load_scorer
from rewardlm.scoring.record import Teacher, judge_folder, record_of
from rewardlm.scoring.scorer import FailureLimit, Scorer, score_texts
from rewardlm.types import Verdict

Say = Callable[[str], None]


def load_judges(names: Sequence[str], labels: Sequence[str], device: str) -> list[Scorer]:
    """Load the judges ``names``, all of them before any reads a text.

    Raises DataError for one whose main label isn't among ``labels``, and what loading raises, with the setting's name.
    """
    judges = []
    for name in names:
        try:
            judge = load_scorer(name, device=device)
        except RewardLMError as error:
            raise type(error)(f"distil: {error}") from error
        if judge.labels[0] not in labels:
            raise DataError(
                f"distil: the main label of {name} is {judge.labels[0]}; expected one of {', '.join(labels)}: "
                "NAME#LABEL chooses another"
            )
        judges.append(judge)
    return judges


def load_teacher(settings: JudgeTrainSettings, device: str) -> Scorer | None:
    """The judge ``teacher``. Raises DataError where it has none of the labels."""
    if settings.teacher is None:
        return None
    teacher = load_scorer(settings.teacher, device=device)
    if not set(teacher.labels) & set(settings.labels):
        raise DataError(
            f"teacher {settings.teacher} has the labels {', '.join(teacher.labels)}; expected some of "
            f"{', '.join(settings.labels)}"
        )
    return teacher


def recorded(judge: Scorer) -> Teacher:
    """What a pupil's record says of its teacher ``judge``, with that one's own teachers if it was trained here."""
    folder, own = judge_folder(judge.name), record_of(judge.name)
    name, revision = judge.name, getattr(judge, "revision", None)
    if folder is not None:  # A card names a folder, not its path.
        name = f"{folder.name}#{name.rpartition('#')[2]}" if "#" in name and not Path(name).is_dir() else folder.name
    known = lineage_of(judge.name).known
    if own is None:
        return Teacher(name, judge.labels[0], revision, known)
    return Teacher(name, judge.labels[0], revision, known, own.encoder, own.share, own.data, own.distilled, own.teacher)


def refuse_others(run: Run, found: Sequence[Teacher]) -> None:
    """Raise RunError where the run was begun with other weights of these judges."""
    before = run.meta.get("distilled")
    if before is None:
        return
    for one, other in zip(before, found, strict=True):
        if one["revision"] != other.revision:
            raise RunError(
                f"{run.path} was distilled from another {other.judge} (weights {str(one['revision'])[:12]}, now "
                f"{str(other.revision)[:12]}): choose another --out"
            )


def distil(
    texts: Sequence[LabelledText], judges: Sequence[Scorer], share: float, say: Say | None
) -> list[LabelledText]:
    """``texts`` with P(main label) by ``judges`` mixed into their labels.

    A label becomes (1 - share) times the source's value plus ``share`` times the mean of the judges that have it. Where
    the source has no value it is that mean, unless the text is complete. Raises ScorerError where a judge fails.
    """
    said: list[dict[str, list[float]]] = [{} for _ in texts]
    verdicts: dict[str, list[Verdict]] = {}
    for judge in judges:
        label = judge.labels[0]
        # Two labels of one judge take one pass.
        weights = getattr(judge, "revision", None) or judge.name
        if weights not in verdicts or not all(label in verdict.values for verdict in verdicts[weights]):
            verdicts[weights] = _read(judge, texts, [label], say)
        for labels, verdict in zip(said, verdicts[weights], strict=True):
            if label in verdict.values:
                labels.setdefault(label, []).append(verdict.values[label])
    return [_mixed(text, labels, share) for text, labels in zip(texts, said, strict=True)]


def fill(
    teacher: Scorer, texts: Sequence[LabelledText], labels: Sequence[str], say: Say | None
) -> dict[str, dict[str, float]]:
    """By text, the teacher's values of those of ``labels`` that its source left open. Raises ScorerError if it fails.

    Labels that a complete text lacks stay open.
    """
    shared = [label for label in teacher.labels if label in labels]
    texts = [text for text in texts if not text.complete]
    return {
        text.text: {
            label: verdict.values[label] for label in shared if label in verdict.values and label not in text.labels
        }
        for text, verdict in zip(texts, _read(teacher, texts, shared, say), strict=True)
    }


def _read(judge: Scorer, texts: Sequence[LabelledText], labels: Sequence[str], say: Say | None) -> list[Verdict]:
    """The verdicts of ``judge`` on ``texts``, wanted for ``labels``. Raises ScorerError if it fails."""
    if say is not None:
        say(f"{judge.name} reads {len(texts):,} texts for {', '.join(labels)}")
    limit = FailureLimit()
    verdicts = score_texts(judge, [text.text for text in texts], limit=limit)
    limit.close()
    return verdicts


def _mixed(text: LabelledText, said: Mapping[str, Sequence[float]], share: float) -> LabelledText:
    labels = dict(text.labels)
    for label, values in said.items():
        mean = sum(values) / len(values)
        if label in labels:
            labels[label] = (1 - share) * labels[label] + share * mean
        elif not text.complete:
            labels[label] = mean
    return dataclasses.replace(text, labels=labels)
