"""``judge migrate``: thresholds against every possible cut, the map against another library and a hand-made one."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rewardlm.config import validate
from rewardlm.errors import ConfigError, DataError, RunError, ScorerError
from rewardlm.judges.cuts import cut_at_precision, cut_at_share, fit_map, map_held_out
from rewardlm.judges.migrate import migrate, read_scored
from rewardlm.judges.settings import JudgeMigrateSettings
from rewardlm.scoring.thresholds import read_thresholds, refuse_other_weights, thresholds_of
from rewardlm.stats import FloatArray

# Few values, so that there are ties, and 0 and 1 themselves.
SCORES = st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0]), min_size=1, max_size=12)


def every_cut(scores: Sequence[float]) -> list[float]:
    """Thresholds from 0 to 1 of which one flags each set of texts that a threshold can flag."""
    edges = sorted({0.0, 1.0, *scores})
    return [*edges, *((low + high) / 2 for low, high in pairwise(edges))]


@given(SCORES, st.data())
def test_the_same_share_is_the_nearest_of_all_cuts(scores: list[float], data: st.DataObject) -> None:
    wanted = data.draw(st.integers(0, len(scores)))
    found = cut_at_share(np.array(scores), wanted)
    flagged = sum(score > found.threshold for score in scores)
    counts = {sum(score > cut for score in scores) for cut in every_cut(scores)}
    assert flagged == found.flagged == min(counts, key=lambda count: (abs(count - wanted), count))
    assert 0 <= found.threshold <= 1
    for other in (found.low, found.threshold, np.nextafter(found.high, 0)):
        if found.low < found.high:
            assert sum(score > other for score in scores) == flagged


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.2, 0.4, 0.6, 1.0]), st.booleans()), min_size=1, max_size=12), st.data()
)
def test_the_same_precision_is_the_lowest_precise_cut(texts: list[tuple[float, bool]], data: st.DataObject) -> None:
    flagged = data.draw(st.integers(1, 12))
    hits = data.draw(st.integers(0, flagged))
    scores, labels = [score for score, _ in texts], [label for _, label in texts]
    found = cut_at_precision(np.array(scores), np.array(labels), hits, flagged)
    precise = {}
    for cut in every_cut(scores):
        called = [label for score, label in texts if score > cut]
        if called and Fraction(sum(called), len(called)) >= Fraction(hits, flagged):
            precise[cut] = len(called)
    if found is None:
        assert not precise
    else:
        assert found.flagged == max(precise.values()) == sum(score > found.threshold for score in scores)


def test_neighbouring_numbers_are_still_told_apart() -> None:
    scores = np.array([0.3, np.nextafter(0.3, 1)])
    found = cut_at_share(scores, 1)
    assert (scores > found.threshold).tolist() == [False, True]


def pooled(x: Sequence[float], y: Sequence[float]) -> dict[float, float]:
    """Pool adjacent violators, by hand: blocks of (sum, count, scores) merge while a later one's mean is lower."""
    blocks: list[tuple[float, int, list[float]]] = []
    for score in sorted(set(x)):
        own = [b for a, b in zip(x, y, strict=True) if a == score]
        blocks.append((sum(own), len(own), [score]))
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] >= blocks[-1][0] / blocks[-1][1]:
            (one, n, left), (two, m, right) = blocks[-2:]
            blocks[-2:] = [(one + two, n + m, left + right)]
    return {score: total / count for total, count, scores in blocks for score in scores}


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 10)), min_size=1, max_size=25))
def test_the_map_is_isotonic_regression(pairs: list[tuple[int, int]]) -> None:
    x, y = [a / 8 for a, _ in pairs], [b / 10 for _, b in pairs]
    found = fit_map(np.array(x), np.array(y))
    expected = pooled(x, y)
    assert found(np.array(x)) == pytest.approx([expected[score] for score in x], abs=1e-9)
    assert all(a < b for a, b in pairwise(found.x))
    assert all(a <= b for a, b in pairwise(found.y))


def test_the_map_between_and_beyond_its_points_is_scikit_learns() -> None:
    isotonic = pytest.importorskip("sklearn.isotonic")
    rng = np.random.default_rng(3)
    x = rng.random(300).round(2)
    y = np.clip(x**2 + rng.normal(0, 0.2, 300), 0, 1)
    grid = np.linspace(0, 1, 333)
    theirs = isotonic.IsotonicRegression(out_of_bounds="clip").fit(x, y).predict(grid)
    assert fit_map(x, y)(grid) == pytest.approx(theirs, abs=1e-9)


def test_the_error_is_of_texts_that_the_map_has_not_seen() -> None:
    """Without any relation between the judges, an in-sample map looks useful; held out, it is worse than the mean."""
    rng = np.random.default_rng(0)
    new, old = rng.random(400), rng.random(400)
    held_out = map_held_out(new, old, range(400), seed=0)
    assert held_out is not None
    in_sample = np.abs(fit_map(new, old)(new) - old).mean()
    error, constant = np.abs(held_out.mapped - old).mean(), np.abs(held_out.constant - old).mean()
    assert in_sample < constant - 0.001 < error


def test_copies_of_a_text_are_never_on_both_sides() -> None:
    """Pairs of copies with a random score: whoever has seen the copy predicts it exactly."""
    rng = np.random.default_rng(1)
    new, old = np.repeat(np.arange(50) / 50, 2), np.repeat(rng.random(50), 2)
    held_out = map_held_out(new, old, np.repeat(range(50), 2), seed=0)
    assert held_out is not None
    assert np.abs(held_out.mapped - old).mean() > 0.15
    assert map_held_out(new[:2], old[:2], [0, 0], seed=0) is None


# A judge that reads its score out of the text: "score 0.25 …".
def said(texts: list[str]) -> list[float]:
    return [float(text.split()[1]) for text in texts]


JUDGE = "test_migrate:said"


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    monkeypatch.syspath_prepend(Path(__file__).parent)

    def write(rows: Sequence[Sequence[object]], header: Sequence[str] = ("text", "score", "label")) -> Path:
        path = tmp_path / "scored.csv"
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            csv.writer(file).writerows([header[: len(rows[0])], *rows])
        return path

    return write


def settings(path: Path, **more: object) -> JudgeMigrateSettings:
    return validate(JudgeMigrateSettings, {"scored": str(path), "to": JUDGE, "n_resamples": 200, **more})


def noisy(n: int, seed: int = 0) -> list[tuple[str, str, int]]:
    """The new judge says the square of what the old one says, with noise; labels follow the old one."""
    rng = np.random.default_rng(seed)
    old = rng.random(n)
    new = np.clip(old**2 + rng.normal(0, 0.05, n), 0, 1)
    labels = rng.random(n) < old
    return [
        (f"score {b:.6f} {i}", f"{a:.6f}", int(c)) for i, (a, b, c) in enumerate(zip(old, new, labels, strict=True))
    ]


def test_everything_that_is_said_of_a_plain_file(table: Callable[..., Path], tmp_path: Path) -> None:
    from scipy.stats import spearmanr

    rows = noisy(400)
    found = migrate(settings(table(rows), threshold=0.6), tmp_path / "moved")
    old, new = np.array([float(b) for _, b, _ in rows]), np.array(said([a for a, _, _ in rows]))
    label = np.array([c for _, _, c in rows], dtype=bool)
    assert (found["n"], found["rows"], found["n_texts"], found["n_unscored"]) == (400, 400, 400, 0)
    assert found["spearman"] == pytest.approx(spearmanr(new, old).statistic)
    assert found["threshold"] == 0.6
    assert found["mean_difference"] == pytest.approx((new - old).mean())
    assert (new > found["threshold_same_share"]).sum() == (old > 0.6).sum()
    low, high = found["threshold_same_share_ci95"] or (1, 0)
    assert low < found["threshold_same_share"] < high
    # The new judge says the square.
    assert low < 0.36 < high
    precision = label[old > 0.6].mean()
    assert found["precision"] == pytest.approx(precision)
    assert found["threshold_same_precision"] is not None
    assert label[new > found["threshold_same_precision"]].mean() >= precision
    assert found["map_error"] is not None
    assert found["map_error_constant"] is not None
    assert found["map_error"] < 0.05 < found["map_error_constant"]
    assert found["notes"] == []


def test_thresholds_yaml_holds_what_was_found_and_no_path_or_text(table: Callable[..., Path], tmp_path: Path) -> None:
    found = migrate(settings(table(noisy(200))), tmp_path / "moved")
    path = tmp_path / "moved" / "thresholds.yaml"
    text = path.read_text(encoding="utf-8")
    assert str(tmp_path) not in text
    assert "score 0." not in text
    judge = yaml.safe_load(text)["judges"][JUDGE]
    assert judge["same_share"]["value"] == found["threshold_same_share"]
    assert judge["same_precision"]["value"] == found["threshold_same_precision"]
    assert judge["source"] == "scored.csv"
    assert judge["n"] == 200
    read = read_thresholds(path.parent).judges[JUDGE]
    assert len(read.same_share.redrawn) == 200
    assert read.map is not None
    assert read.map.error == found["map_error"]
    assert thresholds_of(path, "share")[JUDGE].value == found["threshold_same_share"]
    assert thresholds_of(path, "precision")[JUDGE].value == found["threshold_same_precision"]


def test_without_labels_there_is_no_precision(table: Callable[..., Path], tmp_path: Path) -> None:
    found = migrate(settings(table([row[:2] for row in noisy(50)])), tmp_path)
    assert found["threshold_same_precision"] is None
    assert found["why_no_same_precision"] == "the file has no labels"
    with pytest.raises(ConfigError, match="matching=share"):
        thresholds_of(tmp_path / "thresholds.yaml", "precision")
    with pytest.raises(DataError, match=r"no column 'label', only 'text, score'; name yours with --label-column"):
        migrate(settings(table([row[:2] for row in noisy(50)]), label_column="label"))


def test_a_label_column_that_means_something_else_can_be_left_out(table: Callable[..., Path]) -> None:
    path = table([("score 0.2 a", 0.1, "PT"), ("score 0.9 b", 0.9, "RL")])
    with pytest.raises(DataError, match=r"label is 'PT'; expected 0 or 1.*or none: --label-column ''"):
        migrate(settings(path))
    assert migrate(settings(path, label_column=""))["n_labelled"] == 0


def test_a_precision_that_hangs_on_few_texts_says_so(table: Callable[..., Path]) -> None:
    """Of 300 texts the old judge flags a few, with few errors; the new one finds so precise a cut by luck."""
    rng = np.random.default_rng(3)
    truth = rng.random(300) < 0.1
    old = np.clip(truth * 0.6 + rng.normal(0.2, 0.12, 300), 0, 1)
    new = np.clip(truth * 0.3 + rng.normal(0.3, 0.2, 300), 0, 1)
    found = migrate(
        settings(
            table(
                [
                    (f"score {b:.6f} {i}", f"{a:.6f}", int(t))
                    for i, (a, b, t) in enumerate(zip(old, new, truth, strict=True))
                ]
            )
        )
    )
    notes = " ".join(found["notes"])
    assert "at the upper end of its interval" in notes
    assert "resamples no threshold is as precise as the old judge" in notes
    # Nothing of the kind where two like judges flag half of 400 texts.
    assert "precis" not in " ".join(migrate(settings(table(noisy(400))))["notes"])


def test_a_precision_out_of_reach_says_so(table: Callable[..., Path]) -> None:
    rows = [("score 0.9 a", 0.1, 0), ("score 0.8 b", 0.2, 0), ("score 0.1 c", 0.9, 1), ("score 0.2 d", 0.8, 1)]
    found = migrate(settings(table(rows)))
    assert found["threshold_same_precision"] is None
    assert "not as precise as the old one (1.000)" in (found["why_no_same_precision"] or "")
    nothing = migrate(settings(table(rows), threshold=0.95))
    assert "flags none of the 4" in (nothing["why_no_same_precision"] or "")
    assert any("flags no text above 0.95" in note for note in nothing["notes"])


def test_what_either_judge_left_unscored_is_counted_and_left_out(table: Callable[..., Path]) -> None:
    rows = [*noisy(30), ("", 0.9, 1), ("score 0.5 x", "", 1), ("score 0.5 y", 0.5, "")]
    found = migrate(settings(table(rows)))
    assert (found["rows"], found["n"], found["n_without_score"], found["n_unscored"]) == (33, 31, 1, 1)
    assert found["unscored"] == {"empty response": 1}
    assert found["n_labelled"] == 30


def test_constant_scores_and_ties(table: Callable[..., Path]) -> None:
    constant = migrate(settings(table([(f"score 0.5 {i}", i / 10, i > 5) for i in range(10)])))
    assert constant["spearman"] is None
    # 4 of 10 are above 0.5: to flag none of them is nearer than to flag all.
    assert constant["share_same_share"] == 0
    assert any("No threshold flags exactly 4" in note for note in constant["notes"])
    assert constant["map_error"] is not None
    same = migrate(settings(table([(f"score 0.{i} x", 0.5, "") for i in range(1, 10)])))
    assert same["spearman"] is None
    assert same["share"] == 0


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_few_rows_are_answered_with_what_they_can_say(table: Callable[..., Path], tmp_path: Path, n: int) -> None:
    found = migrate(settings(table(noisy(n))), tmp_path)
    assert found["n"] == n
    assert any("different texts" in note for note in found["notes"])
    assert (found["map_error"] is None) == (n == 1)
    json.dumps(found, allow_nan=False)
    assert read_thresholds(tmp_path).judges[JUDGE].n == n


def test_copies_don_t_make_an_interval_narrower(table: Callable[..., Path]) -> None:
    rows = noisy(60)
    once, often = migrate(settings(table(rows))), migrate(settings(table([row for row in rows for _ in range(5)])))
    assert often["n"] == 300
    assert often["n_texts"] == 60
    for key in ("threshold_same_share_ci95", "spearman_ci95", "map_error_ci95"):
        (a, b), (c, d) = once[key] or (0, 0), often[key] or (0, 0)  # type: ignore[literal-required]
        assert d - c == pytest.approx(b - a, rel=0.35)


def test_other_columns_and_formats(tmp_path: Path, table: Callable[..., Path]) -> None:
    import pandas as pd

    table([("x", 0)])  # puts the judge on the path
    rows = noisy(30)
    frame = pd.DataFrame(rows, columns=["Comment Text", "TOXICITY", "is_toxic"]).astype({"TOXICITY": float})
    named = {"text_column": "comment text", "score_column": "TOXICITY", "label_column": "is_toxic"}
    frame.to_csv(tmp_path / "a.csv", index=False, sep=";")
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    frame.to_json(tmp_path / "a.json", orient="records")
    frame.to_parquet(tmp_path / "a.parquet")
    found = [migrate(settings(tmp_path / f"a.{kind}", **named)) for kind in ("csv", "jsonl", "json", "parquet")]
    assert len({(one["spearman"], one["threshold_same_share"], one["threshold_same_precision"]) for one in found}) == 1


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("text,score\nhello,1.2\n", r"line 2: score is '1.2'; expected a number from 0 to 1"),
        ("text,score\nhello,nan\n", r"line 2: score is 'nan'"),
        ("text,score,label\nhello,0.5,maybe\n", r"line 2: label is 'maybe'; expected 0 or 1"),
        ("comment,score\nhello,0.5\n", r"no column 'text', only 'comment, score'; name yours with --text-column"),
        ("text,toxicity\nhello,0.5\n", r"no column 'score', only 'text, toxicity'; name yours with --score-column"),
        ("text,score\nhello,\n", r"no text has a score by both judges \(1 of 1 have no old score"),
        ("text,score\n", "no row"),
        ("", "is empty"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, table: Callable[..., Path], content: str, expected: str) -> None:
    table([("x", 0)])
    path = tmp_path / "bad.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=expected) as raised:
        migrate(settings(path, to="lexical"))
    assert "\n" not in str(raised.value)


def test_a_file_of_an_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="whose name ends with one of"):
        read_scored(settings(tmp_path / "scored.xlsx"))


def test_a_judge_that_fails_ends_the_command(table: Callable[..., Path]) -> None:
    with pytest.raises(ScorerError, match="could not be scored"):
        migrate(settings(table([("no number here", 0.5), ("nor here", 0.2), ("nor here either", 0.1)])))


def test_thresholds_for_other_weights_or_labels_are_refused(table: Callable[..., Path], tmp_path: Path) -> None:
    migrate(settings(table(noisy(20)), to="lexical"), tmp_path)
    threshold = thresholds_of(tmp_path, "share")["lexical"]
    refuse_other_weights("PT", "lexical", threshold, {"labels": ["toxicity"], "revision": threshold.revision})
    refuse_other_weights("PT", "lexical", threshold, {"labels": ["toxicity"], "revision": None})
    with pytest.raises(RunError, match="made for other weights"):
        refuse_other_weights("PT", "lexical", threshold, {"labels": ["toxicity"], "revision": "another"})
    with pytest.raises(RunError, match="its label 'toxicity', here it is 'hate'"):
        refuse_other_weights("PT", "lexical", threshold, {"labels": ["hate"], "revision": threshold.revision})


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("judges: {}\n", "not thresholds"),
        ("judges: {starter: {same_share: {value: 3}}}\n", "not thresholds"),
        ("threshold: 0.5\n", "not thresholds"),
        ("- 1\n", "expected keys"),
    ],
)
def test_something_else_is_no_thresholds_file(tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "thresholds.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=expected) as raised:
        read_thresholds(path)
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_the_interval_of_the_threshold_covers_the_true_one() -> None:
    """In the whole population the same share is flagged at a known threshold. Two judges of one hidden toxicity."""
    from rewardlm.stats import bootstrap_ci95

    def draw(rng: np.random.Generator, n: int) -> tuple[FloatArray, FloatArray]:
        hidden = rng.normal(size=n)
        old, new = hidden + rng.normal(0, 0.5, n), hidden + rng.normal(0, 0.5, n)
        return 1 / (1 + np.exp(-old)), 1 / (1 + np.exp(-new)) ** 2

    rng = np.random.default_rng(0)
    everyone_old, everyone_new = draw(rng, 1_000_000)
    true = float(np.quantile(everyone_new, 1 - (everyone_old > 0.6).mean()))
    covered = 0
    for seed in range(300):
        old, new = draw(rng, 200)
        flagged = old > 0.6

        def threshold(rows: np.ndarray, new: FloatArray = new, flagged: np.ndarray = flagged) -> float:
            return cut_at_share(new[rows], int(flagged[rows].sum())).threshold

        low, high = bootstrap_ci95(threshold, range(200), n_resamples=400, seed=seed) or (1, 0)
        covered += low <= true <= high
    assert 0.92 <= covered / 300 <= 0.985
