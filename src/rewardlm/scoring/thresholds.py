"""``thresholds.yaml``: above which score a judge calls a text toxic, where that is not 0.5.

``judge migrate`` writes it when a new judge takes an old one's place. ``measure``, ``score``, ``compare`` and
``judge serve`` read it. Only this module knows its layout. A threshold was chosen for one judge with its very weights,
so it is refused for others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from rewardlm.config import Section, read_yaml, validate
from rewardlm.errors import ConfigError, RunError
from rewardlm.runs import Run, write_atomically
from rewardlm.scoring.scorer import Scorer
from rewardlm.scoring.versions import JudgeVersion, version_of

FILE = "thresholds.yaml"
Matching = Literal["share", "precision"]
_HEAD = (
    "# Above which score a judge calls a text toxic, in the place of an old judge and its threshold.\n"
    "# Made by rewardlm judge migrate. For rewardlm measure, score, compare and judge serve: --thresholds FILE.\n"
)


class MatchedThreshold(Section):
    """One threshold of the new judge, and how far other texts of the same kind would have moved it."""

    value: float = Field(ge=0, le=1, description="A text is toxic if its score is above this.")
    ci95: tuple[float, float] | None = Field(None, description="Its 95 % bootstrap interval.")
    reached: float | None = Field(
        None, ge=0, le=1, description="The share, or the precision, that the new judge has at it on the same texts."
    )
    redrawn: tuple[float, ...] = Field(
        (), description="What it would have been on resamples of the texts, in ascending order."
    )

    @model_validator(mode="after")
    def _redrawn_are_scores(self) -> MatchedThreshold:
        if any(not 0 <= value <= 1 for value in self.redrawn):
            raise ValueError("redrawn has a number outside 0 to 1: expected thresholds")
        return self


class OldJudge(Section):
    """The judge that is replaced, at its threshold."""

    threshold: float = Field(ge=0, le=1, description="A text was toxic if its old score was above this.")
    share: float | None = Field(None, ge=0, le=1, description="The share of the texts that it flagged.")
    precision: float | None = Field(None, ge=0, le=1, description="The share of the flagged that people call toxic.")


class Curve(Section):
    """A monotone map from the new judge's scores to the old one's: straight lines between points."""

    new: tuple[float, ...] = Field(description="Scores of the new judge, ascending.")
    old: tuple[float, ...] = Field(description="What the old one says there, never falling.")
    error: float | None = Field(None, ge=0, description="Mean distance to old scores it wasn't fitted to.")


class JudgeThresholds(Section):
    """What ``thresholds.yaml`` says of one judge."""

    label: str | None = Field(None, description="The label that the scores are of.")
    version: str | None = Field(None, description="The judge's version, if it has one.")
    revision: str | None = Field(None, description="What pins its weights: a hash, or a package's version.")
    same_share: MatchedThreshold = Field(description="At it, the new judge flags the share that the old one flagged.")
    same_precision: MatchedThreshold | None = Field(None, description="At it, it is as precise as the old one was.")
    old: OldJudge | None = Field(None, description="The judge that is replaced.")
    map: Curve | None = Field(None, description="From the new scores to the old scale.")
    n: int | None = Field(None, ge=1, description="Texts that both judges scored.")
    source: str | None = Field(None, description="The name of the file with the old scores.")
    date: str | None = Field(None, description="When this was made.")

    def matched(self, matching: Matching) -> MatchedThreshold | None:
        """The threshold at the old one's share, or at its precision."""
        return self.same_share if matching == "share" else self.same_precision


class Thresholds(Section):
    """``thresholds.yaml``: what it says of each judge, by the judge's name."""

    judges: dict[str, JudgeThresholds] = Field(min_length=1, description="By the judge's name, as for --scorer.")


class Threshold(Section):
    """The threshold of one judge that is in force, as a run's record and a comparison hold it."""

    value: float = Field(ge=0, le=1, description="A text is toxic if its score is above this.")
    matching: Matching = Field(description="It stands for the old threshold by the share, or by the precision.")
    old: float | None = Field(None, description="The old judge's threshold.")
    label: str | None = Field(None, description="The judge's label that it belongs to.")
    revision: str | None = Field(None, description="The weights that it belongs to.")
    version: str | None = Field(None, description="The judge's version that it belongs to.")
    share: float | None = Field(None, description="The share of the migration's texts that is above it.")
    n: int | None = Field(None, description="Number of the migration's texts.")
    source: str | None = Field(None, description="The name of the migration's file.")
    redrawn: tuple[float, ...] = Field((), description="What it would have been on resamples of the migration's texts.")


def write_thresholds(path: Path, found: Thresholds) -> None:
    """Write ``path`` at once. Raises RunError where that can't be done."""
    import yaml

    text = yaml.safe_dump(
        found.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True, width=120,
        default_flow_style=None,
    )  # fmt: skip
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (_HEAD + text).encode())
    except OSError as error:
        raise RunError(f"can't write {path}: {error.strerror}; choose another --out") from None


def read_thresholds(path: Path) -> Thresholds:
    """What ``judge migrate`` wrote. Raises ConfigError, in one line, for a file that is missing or something else."""
    path = path / FILE if path.is_dir() else path
    tree = read_yaml(path)
    try:
        return validate(Thresholds, tree)
    except ConfigError as error:
        raise ConfigError(
            f"{path}: not thresholds as rewardlm judge migrate writes them ({'; '.join(error.problems) or error})"
        ) from None


def thresholds_of(path: Path, matching: Matching) -> dict[str, Threshold]:
    """The thresholds in force, by judge. Raises ConfigError if a judge has none that matches so."""
    found = {}
    for name, judge in read_thresholds(path).judges.items():
        matched = judge.matched(matching)
        if matched is None:
            raise ConfigError(
                f"{path}: {name!r} has no threshold of the same precision: its texts had no labels, or it can't be "
                "that precise; take matching=share, or migrate with labelled texts"
            )
        found[name] = Threshold(
            value=matched.value,
            matching=matching,
            old=None if judge.old is None else judge.old.threshold,
            label=judge.label,
            revision=judge.revision,
            version=judge.version,
            share=matched.reached if matching == "share" else None,
            n=judge.n,
            source=judge.source,
            redrawn=matched.redrawn,
        )
    return found


def refuse_other_weights(where: str, name: str, threshold: Threshold, judge: Mapping[str, Any]) -> None:
    """Raise RunError if ``judge`` (``labels`` and ``revision`` as a run records them, and its ``version`` where it is
    loaded) isn't the one the threshold was made for. If nobody knows a judge's weights, its name is trusted.
    """
    revision, labels, version = judge.get("revision"), judge.get("labels") or [None], judge.get("version")
    if threshold.revision is not None and revision is not None and threshold.revision != revision:
        raise RunError(
            f"{where}: the threshold of {name!r} was made for other weights ({threshold.revision[:40]}; here "
            f"{str(revision)[:40]}): run rewardlm judge migrate again with this judge"
        )
    if None not in (threshold.version, version) and threshold.version != version:
        # The weights may be the same, and the calibration or the tokenizer another.
        raise RunError(
            f"{where}: the threshold of {name!r} was made for its version {threshold.version}, here it is {version}: "
            "run rewardlm judge migrate again with this judge"
        )
    if threshold.label is not None and labels[0] is not None and threshold.label != labels[0]:
        raise RunError(
            f"{where}: the threshold of {name!r} was made for its label {threshold.label!r}, here it is {labels[0]!r}: "
            "run rewardlm judge migrate again with this label"
        )


def refuse_loaded(where: str, scorer: Scorer, version: JudgeVersion, threshold: Threshold) -> None:
    """``refuse_other_weights`` for a judge that is loaded, so that its version is known too."""
    judge = {
        "labels": list(scorer.labels), "revision": getattr(scorer, "revision", None), "version": version.known,
    }  # fmt: skip
    refuse_other_weights(where, version.judge, threshold, judge)


def recorded_thresholds(
    run: Run, scorers: Sequence[Scorer], path: Path | None, matching: Matching
) -> dict[str, dict[str, Any]]:
    """What to record in ``run``: its ``thresholds`` with those of ``scorers`` from the file ``path``; nothing without.

    Judges that the file doesn't name have none; ``check_thresholds`` has seen to it that it names one of a command's.
    Raises ConfigError if the file can't be read, and RunError for a judge with other weights.
    """
    if path is None:
        return {}
    found = thresholds_of(path, matching)
    own = {scorer.name: scorer for scorer in scorers if scorer.name in found}
    if not own:
        return {}
    for name, scorer in own.items():
        version = version_of(name, revision=getattr(scorer, "revision", None))
        refuse_loaded(str(run.path), scorer, version, found[name])
    kept = {name: found[name].model_dump(mode="json") for name in own}
    return {"thresholds": {**run.meta.get("thresholds", {}), **kept}}


def check_thresholds(path: Path | None, matching: Matching, scorers: Sequence[str]) -> None:
    """Raise ConfigError if the file ``path`` can't be read or has a threshold for none of ``scorers``."""
    if path is not None and not (found := thresholds_of(path, matching)).keys() & set(scorers):
        raise ConfigError(nobody_named(path, found, scorers))


def nobody_named(path: Path, found: Iterable[str], judges: Iterable[str]) -> str:
    """The complaint about a file that has thresholds for none of ``judges``."""
    return (
        f"{path} has thresholds for {', '.join(found)}, but the judges are {', '.join(judges) or 'none'}: name one of "
        "them, or leave thresholds out"
    )
