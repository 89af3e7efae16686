"""What several judges know, taught to one (distillation; Hinton, Vinyals and Dean 2015, arXiv 1503.02531).

A judge of toxicity and one of hate are two passes, and one network that learns both from the data sets alone learns
each less well. Here every text of the training gets the others' probabilities as its targets.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewardlm.errors import DataError, RewardLMError, RunError
from rewardlm.judges.texts import LabelledText
from rewardlm.scoring.lineage import lineage_of
from rewardlm.scoring.trained import RECORD, judge_folder
from rewardlm.types import Verdict

if TYPE_CHECKING:
    from rewardlm.runs import Run
    from rewardlm.scoring.scorer import Scorer


def load_judges(names: Sequence[str], labels: Sequence[str], device: str) -> list[Scorer]:
    """The judges ``names``, all of them before any reads a text.

    Raises DataError for one whose main label isn't among ``labels``, and what loading it raises, naming the setting.
    """
    from rewardlm.scoring.scorer import load_scorer

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


def records(judges: Sequence[Scorer]) -> list[dict[str, Any]]:
    """Of each judge that teaches another what that one's card and lineage say of it, its own teachers included."""
    return [_record(judge) for judge in judges]


def _record(judge: Scorer) -> dict[str, Any]:
    """Judge, label, revision, and of one that was trained here its encoder, its data and its teachers."""
    folder = judge_folder(judge.name)
    path = None if folder is None else folder / RECORD
    own = json.loads(path.read_text(encoding="utf-8")) if path is not None and path.is_file() else {}
    lineage = lineage_of(judge.name)
    return {
        "judge": _without_path(judge.name),
        "label": judge.labels[0],
        "revision": getattr(judge, "revision", None),
        "known": lineage.known,
        "encoder": own.get("encoder"),
        "share": own.get("share"),
        "data": own.get("data", []),
        "distilled": own.get("distilled", []),
        "teacher": own.get("teacher"),
    }


def refuse_others(run: Run, found: Sequence[Mapping[str, Any]]) -> None:
    """RunError where the judges of a run that has begun are not those that it began with."""
    before = run.meta.get("distilled")
    if before is None:
        return
    for one, other in zip(before, found, strict=True):
        if one["revision"] != other["revision"]:
            raise RunError(
                f"{run.path} was distilled from another {other['judge']} (weights {str(one['revision'])[:12]}, now "
                f"{str(other['revision'])[:12]}): choose another --out"
            )


def distil(
    texts: Sequence[LabelledText], judges: Sequence[Scorer], share: float, say: Callable[[str], None] | None
) -> list[LabelledText]:
    """``texts`` with P(main label) by ``judges`` mixed into their labels.

    A label becomes (1 - share) of what its source says and ``share`` of the mean of the judges that have it; where the
    source says nothing it is that mean, unless the text is complete. Raises ScorerError where a judge can't say.
    """
    said: list[dict[str, list[float]]] = [{} for _ in texts]
    verdicts: dict[str, list[Verdict]] = {}
    for judge in judges:
        label = judge.labels[0]
        # Two labels of one judge are one reading.
        weights = getattr(judge, "revision", None) or judge.name
        if weights not in verdicts or not all(label in verdict.values for verdict in verdicts[weights]):
            verdicts[weights] = read(judge, texts, [label], say)
        for labels, verdict in zip(said, verdicts[weights], strict=True):
            if label in verdict.values:
                labels.setdefault(label, []).append(verdict.values[label])
    return [_mixed(text, labels, share) for text, labels in zip(texts, said, strict=True)]


def read(
    judge: Scorer, texts: Sequence[LabelledText], labels: Sequence[str], say: Callable[[str], None] | None
) -> list[Verdict]:
    """What ``judge`` says of ``texts``, which it reads for ``labels``. Raises ScorerError if it can't."""
    from rewardlm.scoring.scorer import FailureLimit, score_texts

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


def _without_path(name: str) -> str:
    """A card names a folder, and not where it lay."""
    folder = judge_folder(name)
    if folder is None:
        return name
    return folder.name if Path(name).is_dir() else f"{folder.name}#{name.rpartition('#')[2]}"
