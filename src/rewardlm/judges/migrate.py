"""``judge migrate``: what a new judge makes of texts that an old one has scored, and which of its thresholds stand for
the old one's.

The old judge may be gone: only its stored scores are needed. Copies of a text count as one unit in every interval, and
stay together in cross-validation. ``cuts`` finds the thresholds and the map, ``scoring.thresholds`` keeps them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from rewardlm.data.files import TABLES, column, columns, headless, probability, read_table
from rewardlm.errors import DataError
from rewardlm.judges.cuts import Cut, cut_at_precision, cut_at_share, fit_map, map_held_out
from rewardlm.judges.metrics import Bin, auc, confusion, reliability, spearman, spearman_interval95
from rewardlm.judges.settings import JudgeMigrateSettings
from rewardlm.progress import ProgressCallback
from rewardlm.runs import environment
from rewardlm.scoring.load import load_scorer
from rewardlm.scoring.scorer import FailureLimit, Scorer, cuts, piece_of, score_texts
from rewardlm.scoring.thresholds import (
    FILE,
    Curve,
    JudgeThresholds,
    MatchedThreshold,
    OldJudge,
    Thresholds,
    write_thresholds,
)
from rewardlm.scoring.versions import version_of
from rewardlm.stats import BoolArray, FloatArray, bootstrap, mean_ci95
from rewardlm.typed import shown
from rewardlm.types import Verdict

Interval = tuple[float, float]

KIND = "judge-migration"
_SUFFIXES = (*TABLES, ".json")
_LABELS = {"1": True, "0": False, "1.0": True, "0.0": False, "true": True, "false": False}
# So many resampled thresholds are kept, evenly from all: enough to say how the threshold may vary.
_KEPT = 200
# With fewer texts, or fewer flagged ones, a threshold hangs on single texts.
FEW_TEXTS = 100
FEW_FLAGGED = 10


@dataclass(frozen=True, slots=True)
class ScoredTexts:
    """N texts with the old judge's scores Float[N], NaN where it gave none, and labels Float[N]: 1, 0, or NaN where
    nobody judged. ``labels`` is None if the file has no such column.
    """

    texts: list[str]
    scores: FloatArray
    labels: FloatArray | None


class NewJudge(TypedDict):
    """Which judge takes over, by which label, and what pins its weights."""

    name: str
    label: str
    version: str | None
    revision: str | None


class Picture(TypedDict):
    """What the page draws. ``bins`` are by the new score, with the mean old score as target; ``points`` are (new, old)
    of some texts; ``map`` are the map's points; ``shares`` are (threshold, share flagged) of old and new.
    """

    bins: list[Bin]
    points: list[tuple[float, float]]
    map: list[tuple[float, float]]
    shares_old: list[tuple[float, float]]
    shares_new: list[tuple[float, float]]


class Migration(TypedDict):
    """What ``judge migrate --json`` prints. A text is flagged by a score above a threshold, strictly. None where the
    data can't say. Every interval is of 95 %, over distinct texts.

    ``n`` counts rows that both judges scored. ``share`` is what the old judge flags of them, ``share_at_old_threshold``
    what the new one flags at the old number. What ends in ``_same_share`` or ``_same_precision`` is at that threshold
    of the new judge; the latter are over the ``n_labelled`` rows with a label. ``threshold_same_share_gap``: every
    threshold from its lower end to below its upper one flags the same texts. ``map_error`` is the mean |mapped − old|
    over texts that the map was not fitted to; ``map_error_constant``, the same for the mean in the map's place.
    """

    file: str
    judge: NewJudge
    rows: int
    n: int
    n_texts: int
    n_without_score: int
    n_unscored: int
    unscored: dict[str, int]
    cut: int
    spearman: float | None
    spearman_ci95: Interval | None
    mean_difference: float
    mean_difference_ci95: Interval | None
    threshold: float
    share: float
    share_at_old_threshold: float
    threshold_same_share: float
    threshold_same_share_ci95: Interval | None
    threshold_same_share_gap: Interval
    share_same_share: float
    share_by_both: float
    agreement_same_share: float | None
    kappa_same_share: float | None
    n_labelled: int
    positives: int
    precision: float | None
    recall: float | None
    threshold_same_precision: float | None
    threshold_same_precision_ci95: Interval | None
    precision_same_precision: float | None
    recall_same_precision: float | None
    why_no_same_precision: str | None
    auc_old: float | None
    auc_new: float | None
    auc_difference_ci95: Interval | None
    map_error: float | None
    map_error_ci95: Interval | None
    map_error_constant: float | None
    notes: list[str]
    picture: Picture
    thresholds: str | None


def migrate(
    settings: JudgeMigrateSettings, out: Path | None = None, *, report: ProgressCallback | None = None
) -> Migration:
    """Score the texts of ``settings.scored`` by the judge ``settings.to`` and compare its scores with the stored ones.

    With ``out``, writes ``out``/thresholds.yaml. Raises DataError for a file that isn't as described, or in which no
    text has both scores; ScorerError for a judge that can't be used or fails on more than ``max_failed_share`` of the
    texts; RunError where ``out`` can't be written.
    """
    scored = read_scored(settings)
    scorer = load_scorer(settings.to, device=_device(settings.device), services=settings.services)
    verdicts = _score(scorer, scored.texts, settings.max_failed_share, report)
    label = scorer.labels[0]
    new = np.array([verdict.values.get(label, np.nan) for verdict in verdicts], dtype=np.float64)
    found, kept = _compared(settings, scorer, scored, new, verdicts)
    if out is not None:
        path = out / FILE
        write_thresholds(path, Thresholds(judges={scorer.name: kept}))
        found["thresholds"] = str(path)
    return found


def read_scored(settings: JudgeMigrateSettings) -> ScoredTexts:
    """The rows of the file: a .csv, .tsv, .jsonl, .parquet, or a .json list. An empty score or label is none.

    Raises DataError that names the line for anything else that is no number from 0 to 1, or no label 0 or 1.
    """
    path = Path(settings.scored).expanduser()
    expected = f"{settings.text_column!r} and the old judge's {settings.score_column!r} (0 to 1)"
    if path.suffix.lower() not in _SUFFIXES:
        raise DataError(f"{path}: expected a file with {expected}, whose name ends with one of {', '.join(_SUFFIXES)}")
    rows = list(read_table(path, expected))
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    text_name, score_name, label_name = (
        column(names, [wanted, wanted.casefold()])
        for wanted in (settings.text_column, settings.score_column, settings.label_column)
    )
    for name, wanted, flag in (
        (text_name, settings.text_column, "--text-column"),
        (score_name, settings.score_column, "--score-column"),
    ):
        if name is None:
            headless(path, names, f"{settings.text_column},{settings.score_column}")
            raise DataError(f"{path}: no column {wanted!r}, only {columns(names)}; name yours with {flag}")
    if label_name is None and settings.label_column and "label_column" in settings.model_fields_set:
        raise DataError(
            f"{path}: no column {settings.label_column!r}, only {columns(names)}; name yours with --label-column, or "
            "leave the flag out if there are no labels"
        )
    assert text_name is not None
    assert score_name is not None
    texts, scores, labels = [], [], []
    for row in rows:
        texts.append("" if row.values.get(text_name) is None else row.text(text_name))
        score = probability(row.values.get(score_name), row.where, score_name)
        scores.append(np.nan if score is None else score)
        labels.append(np.nan if label_name is None else _label(row.values.get(label_name), row.where, label_name))
    return ScoredTexts(texts, np.array(scores), np.array(labels) if label_name is not None else None)


def _label(value: object, where: str, name: str) -> float:
    """1.0, 0.0, or NaN where nobody judged. Raises DataError for anything else: nothing is guessed."""
    text = "" if value is None else str(value).strip().lower()
    if not text:
        return np.nan
    if text not in _LABELS:
        raise DataError(
            f"{where}: {name} is {shown(value)}; expected 0 or 1, true or false, or nothing. If the column holds "
            "something else, name another with --label-column, or none: --label-column ''"
        )
    return float(_LABELS[text])


def _device(name: str) -> str:
    from rewardlm.models.load import resolve_device

    return str(resolve_device(name))


def _score(
    scorer: Scorer, texts: Sequence[str], max_failed_share: float, report: ProgressCallback | None
) -> list[Verdict]:
    limit = FailureLimit(max_failed_share)
    verdicts: list[Verdict] = []
    size = piece_of(scorer)
    for start in range(0, len(texts), size):
        verdicts += score_texts(scorer, texts[start : start + size], limit=limit)
        if report is not None:
            report(len(verdicts), len(texts), "texts")
    limit.close()
    return verdicts


def _compared(
    settings: JudgeMigrateSettings,
    scorer: Scorer,
    scored: ScoredTexts,
    new_of_all: FloatArray,
    verdicts: Sequence[Verdict],
) -> tuple[Migration, JudgeThresholds]:
    both = ~np.isnan(scored.scores) & ~np.isnan(new_of_all)
    name = Path(settings.scored).name
    unscored = Counter(verdict.reason or "no value" for verdict in verdicts if scorer.labels[0] not in verdict.values)
    if not both.any():
        raise DataError(
            f"{settings.scored}: no text has a score by both judges ({int(np.isnan(scored.scores).sum()):,} of "
            f"{both.size:,} have no old score, {scorer.name} left {sum(unscored.values()):,} unscored); expected at "
            "least one"
        )
    texts = [text for text, is_in in zip(scored.texts, both, strict=True) if is_in]
    old, new = scored.scores[both], new_of_all[both]
    labels = np.full(old.size, np.nan) if scored.labels is None else scored.labels[both]
    # Copies that differ in white space alone are copies.
    _, units = np.unique([" ".join(text.split()) for text in texts], return_inverse=True)
    how = _Resampling(units, settings.n_resamples, settings.seed)
    threshold = settings.threshold

    flagged = old > threshold
    at_share = cut_at_share(new, int(flagged.sum()))
    share_draws = how.draws(lambda rows: cut_at_share(new[rows], int(flagged[rows].sum())).threshold)
    taken = new > at_share.threshold
    agree = confusion(old - threshold, new - at_share.threshold, flagged, 0.0)

    precision = _same_precision(old, new, labels, threshold, how, has_column=scored.labels is not None)
    labelled = ~np.isnan(labels)
    positive = labels[labelled] == 1
    areas = [auc(scores[labelled], positive) for scores in (old, new)]

    curve = fit_map(new, old)
    held_out = map_held_out(new, old, units, seed=settings.seed)
    errors = None if held_out is None else np.abs(held_out.mapped - old)

    revision = getattr(scorer, "revision", None)
    judge: NewJudge = {
        "name": scorer.name,
        "label": scorer.labels[0],
        "version": version_of(scorer.name, revision=revision).known,
        "revision": revision,
    }
    found: Migration = {
        "file": name,
        "judge": judge,
        "rows": both.size,
        "n": old.size,
        "n_texts": how.number,
        "n_without_score": int(np.isnan(scored.scores).sum()),
        "n_unscored": sum(unscored.values()),
        "unscored": dict(unscored),
        "cut": sum(cuts(scorer, texts)),
        "spearman": spearman(new, old),
        "spearman_ci95": spearman_interval95(
            new, old, n_resamples=settings.n_resamples, seed=settings.seed, clusters=units
        ),
        "mean_difference": float((new - old).mean()),
        "mean_difference_ci95": how.mean_interval(new - old),
        "threshold": threshold,
        "share": float(flagged.mean()),
        "share_at_old_threshold": float((new > threshold).mean()),
        "threshold_same_share": at_share.threshold,
        "threshold_same_share_ci95": _with_gap(share_draws, at_share, how.number),
        "threshold_same_share_gap": (at_share.low, at_share.high),
        "share_same_share": float(taken.mean()),
        "share_by_both": float((taken & flagged).mean()),
        "agreement_same_share": agree["agreement"],
        "kappa_same_share": agree["kappa"],
        "n_labelled": int(labelled.sum()),
        "positives": int(positive.sum()),
        "precision": precision.old,
        "recall": precision.old_recall,
        "threshold_same_precision": None if precision.cut is None else precision.cut.threshold,
        "threshold_same_precision_ci95": precision.ci95,
        "precision_same_precision": precision.new,
        "recall_same_precision": precision.new_recall,
        "why_no_same_precision": precision.why_none,
        "auc_old": areas[0],
        "auc_new": areas[1],
        "auc_difference_ci95": _auc_difference(old[labelled], new[labelled], positive, how.of(labelled)),
        "map_error": None if errors is None else float(errors.mean()),
        "map_error_ci95": None if errors is None else how.mean_interval(errors),
        "map_error_constant": None if held_out is None else float(np.abs(held_out.constant - old).mean()),
        "notes": [],
        "picture": _picture(old, new, curve.x, curve.y, settings.seed),
        "thresholds": None,
    }
    found["notes"] = list(_notes(found, at_share, precision, settings.n_resamples))
    kept = JudgeThresholds(
        label=judge["label"],
        version=judge["version"],
        revision=judge["revision"],
        same_share=MatchedThreshold(
            value=at_share.threshold,
            ci95=found["threshold_same_share_ci95"],
            reached=found["share_same_share"],
            redrawn=_kept(share_draws),
        ),
        same_precision=None
        if precision.cut is None
        else MatchedThreshold(
            value=precision.cut.threshold,
            ci95=found["threshold_same_precision_ci95"],
            reached=precision.new,
            redrawn=_kept(precision.draws),
        ),
        old=OldJudge(threshold=threshold, share=found["share"], precision=precision.old),
        map=Curve(new=curve.x, old=tuple(round(y, 6) for y in curve.y), error=found["map_error"]),
        n=old.size,
        source=name,
        date=environment()["date"][:10],
    )
    return found, kept


@dataclass(frozen=True, slots=True)
class _Resampling:
    """Draws distinct texts, each with all of its copies. ``units`` [N] says to which text a row belongs."""

    units: NDArray[np.intp]
    n_resamples: int
    seed: int

    @property
    def number(self) -> int:
        return int(np.unique(self.units).size)

    def of(self, rows: BoolArray) -> _Resampling:
        """The same for some rows, Bool[N]."""
        return _Resampling(self.units[rows], self.n_resamples, self.seed)

    def draws(self, statistic: Callable[[NDArray[np.intp]], float | None]) -> list[float]:
        return bootstrap(statistic, self.units, n_resamples=self.n_resamples, seed=self.seed)

    def mean_interval(self, values: FloatArray) -> Interval | None:
        """95 % interval of the mean over the rows."""
        _, place = np.unique(self.units, return_inverse=True)
        return mean_ci95(np.bincount(place, weights=values), np.bincount(place))


@dataclass(frozen=True, slots=True)
class _Precision:
    """The old judge's precision and recall, the new one's at ``cut``, and why there is none. ``flagged_at_least`` texts
    are flagged at the upper end of the cut's interval.
    """

    old: float | None = None
    old_recall: float | None = None
    cut: Cut | None = None
    new: float | None = None
    new_recall: float | None = None
    draws: Sequence[float] = ()
    ci95: Interval | None = None
    flagged_at_least: int = 0
    why_none: str | None = None


def _same_precision(
    old: FloatArray, new: FloatArray, labels: FloatArray, threshold: float, how: _Resampling, *, has_column: bool
) -> _Precision:
    """Over the rows with a label."""
    labelled = ~np.isnan(labels)
    if not labelled.any():
        return _Precision(why_none="the labels are empty" if has_column else "the file has no labels")
    o, s, positive = old[labelled], new[labelled], labels[labelled] == 1
    flagged = o > threshold
    total = int(positive.sum())
    if not flagged.any():
        return _Precision(
            old_recall=0.0 if total else None,
            why_none=f"the old judge flags none of the {o.size:,} labelled texts, so it has no precision",
        )
    hits = int((flagged & positive).sum())
    precision, recall = hits / int(flagged.sum()), hits / total if total else None
    cut = cut_at_precision(s, positive, hits, int(flagged.sum()))
    if cut is None:
        return _Precision(
            precision,
            recall,
            why_none=f"the new judge is not as precise as the old one ({precision:.3f}) at any threshold",
        )

    def again(rows: NDArray[np.intp]) -> float | None:
        called, true = flagged[rows], positive[rows]
        if not called.any():
            return None
        found = cut_at_precision(s[rows], true, int((called & true).sum()), int(called.sum()))
        return None if found is None else found.threshold

    resampling = how.of(labelled)
    taken = s > cut.threshold
    true = int((taken & positive).sum())
    draws = resampling.draws(again)
    ci95 = _with_gap(draws, cut, resampling.number)
    return _Precision(
        precision, recall, cut, true / cut.flagged, true / total if total else None, draws, ci95,
        cut.flagged if ci95 is None else int((s >= ci95[1]).sum()),
    )  # fmt: skip


def _with_gap(draws: Sequence[float], cut: Cut, units: int) -> Interval | None:
    """95 % percentile interval, widened to all thresholds that flag the same texts. None for fewer than two texts."""
    if units < 2 or not draws:
        return None
    low, high = np.quantile(draws, [0.025, 0.975])
    return min(float(low), cut.low), max(float(high), cut.high)


def _kept(draws: Sequence[float]) -> tuple[float, ...]:
    """``_KEPT`` of the draws, evenly from the lowest to the highest."""
    if not draws:
        return ()
    places = (np.arange(_KEPT) + 0.5) / _KEPT
    return tuple(round(float(value), 6) for value in np.quantile(draws, places, method="nearest"))


def _auc_difference(old: FloatArray, new: FloatArray, positive: BoolArray, how: _Resampling) -> Interval | None:
    """95 % interval of the new judge's AUC minus the old one's."""
    if how.number < 2:
        return None

    def difference(rows: NDArray[np.intp]) -> float | None:
        one, two = auc(old[rows], positive[rows]), auc(new[rows], positive[rows])
        return None if one is None or two is None else two - one

    draws = how.draws(difference)
    if not draws:
        return None
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def _picture(old: FloatArray, new: FloatArray, x: Iterable[float], y: Iterable[float], seed: int) -> Picture:
    shown_rows = np.random.default_rng(seed).permutation(old.size)[:1500]
    grid = np.linspace(0, 1, 101)
    return {
        "bins": reliability(new, old),
        "points": [(round(float(new[row]), 4), round(float(old[row]), 4)) for row in np.sort(shown_rows)],
        "map": list(zip(x, y, strict=True)),
        "shares_old": [(float(cut), float((old > cut).mean())) for cut in grid],
        "shares_new": [(float(cut), float((new > cut).mean())) for cut in grid],
    }


def _notes(found: Migration, at_share: Cut, precision: _Precision, resamples: int) -> Iterable[str]:
    """What must be known before anyone relies on the numbers."""
    n, texts = found["n"], found["n_texts"]
    if texts < FEW_TEXTS:
        yield f"Only {texts:,} different texts: the thresholds hang on a few of them. Use some hundreds."
    if texts < n:
        yield f"{n - texts:,} of {n:,} rows are copies of another text: they count as one text in every interval."
    if found["n_without_score"]:
        yield f"{found['n_without_score']:,} of {found['rows']:,} rows have no old score and are left out."
    if found["n_unscored"]:
        listed = ", ".join(f"{count:,} {reason}" for reason, count in found["unscored"].items())
        yield f"{found['judge']['name']} left {found['n_unscored']:,} of {found['rows']:,} texts unscored ({listed})."
    if found["cut"]:
        yield f"{found['cut']:,} texts were too long for {found['judge']['name']}: it read a part of each."
    wanted = round(found["share"] * n)
    if wanted in (0, n):
        yield (
            f"The old judge flags {'no text' if wanted == 0 else 'every text'} above {found['threshold']:g}: these "
            "texts can't say where the new threshold belongs."
        )
    elif wanted != at_share.flagged:
        yield (
            f"No threshold flags exactly {wanted:,} texts, because texts have equal scores: the nearest flags "
            f"{at_share.flagged:,}."
        )
    if found["spearman"] is None and n > 1:
        yield "One of the judges gives all texts the same score, so there is no rank correlation."
    if precision.cut is not None and precision.flagged_at_least < FEW_FLAGGED:
        yield (
            f"At the threshold of the same precision {precision.cut.flagged:,} labelled texts are flagged, and at the "
            f"upper end of its interval {precision.flagged_at_least:,}: its precision hangs on these. It is the lowest "
            "threshold that is precise enough on these texts, so on others it may be less precise."
        )
    lost = resamples - len(precision.draws)
    if precision.cut is not None and lost > 0:
        yield (
            f"In {lost:,} of {resamples:,} resamples no threshold is as precise as the old judge: the interval of the "
            "threshold of the same precision leaves them out, so it is too narrow."
        )
    error, constant = found["map_error"], found["map_error_constant"]
    if error is not None and constant is not None and error >= constant:
        yield "The map is no better than saying the mean old score of every text: don't use it."
