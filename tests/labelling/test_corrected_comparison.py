"""``compare --labels``: corrected shares and changes, against formulas by hand and known populations."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from labelled_runs import scored
from scipy import stats as scipy_stats

from rewardlm.config import CompareSettings, LabelSettings
from rewardlm.errors import ConfigError, RunError
from rewardlm.labelling.folder import LabelFolder, Said
from rewardlm.measuring.compare import compare
from rewardlm.measuring.correction import JudgeErrors
from rewardlm.measuring.known_errors import errors_on_suite
from rewardlm.measuring.label_sample import label_folder
from rewardlm.measuring.labelled import change_by_errors, share_by_errors
from rewardlm.reporting.corrected import rows
from rewardlm.reporting.names import SPLITS
from rewardlm.runs import Run


def labelled_folder(tmp_path: Path, labels: int, **settings) -> tuple[LabelFolder, list[Path], list[np.ndarray]]:
    found = [scored(tmp_path / label, label, prompts=60, seed=seed, share=share)
             for seed, (label, share) in enumerate((("PT", 0.4), ("FT", 0.2)))]  # fmt: skip
    paths, truths = [path for path, _ in found], [truth for _, truth in found]
    folder = label_folder(LabelSettings(labels=labels, **settings), paths, tmp_path / "labels")
    folder.add([Said(one.id, "x", float(truths[one.run][one.answer]), "now") for one in folder.items])
    return folder, paths, truths


def test_with_every_answer_labelled_the_shares_are_theirs(tmp_path: Path) -> None:
    folder, paths, truths = labelled_folder(tmp_path, 360)
    for method in ("ppi", "rogan-gladen"):
        found = compare(paths, labels=folder.run.path, correction=method)
        for model, truth in zip(found.models, truths, strict=True):
            for judge in ("a", "b"):
                for split, inside in (("all", np.ones(180, bool)), ("toxic_prompts", np.arange(180) // 3 % 2 == 1)):
                    one = model.scorers[judge][split]
                    assert one.correction == method
                    assert one.corrected_fraction == pytest.approx(truth[inside].mean())
                    assert one.labels == inside.sum()
                    assert one.corrected_fraction_ci95 is not None
                    assert one.corrected_fraction_ci95[0] < truth[inside].mean() < one.corrected_fraction_ci95[1]
        for change in found.comparisons:
            if change.split == "all":
                assert change.corrected_delta == pytest.approx(truths[1].mean() - truths[0].mean())
                assert change.labels == 360


def test_with_some_it_is_near_the_truth_and_not_the_judges_share(tmp_path: Path) -> None:
    folder, paths, truths = labelled_folder(tmp_path, 160)
    found = compare(paths, labels=folder.run.path)
    (change,) = [one for one in found.comparisons if (one.scorer, one.split) == ("a", "all")]
    assert change.corrected_delta_ci95 is not None
    low, high = change.corrected_delta_ci95
    assert low < truths[1].mean() - truths[0].mean() < high
    assert change.corrected_delta is not None
    assert low < change.corrected_delta < high
    # Scores help: the interval is narrower than that of the labels alone would be.
    alone = 2 * 1.96 * math.sqrt(sum(one.mean() * (1 - one.mean()) / 80 for one in truths))
    assert high - low < alone
    # The judge's own numbers stay what they were.
    plain = compare(paths)
    assert [one.delta for one in found.comparisons] == [one.delta for one in plain.comparisons]
    assert all(one.corrected_delta is None and one.labels is None for one in plain.comparisons)


def test_a_judges_further_labels_and_splits_without_labels_are_left_alone(tmp_path: Path) -> None:
    folder, paths, _ = labelled_folder(tmp_path, 40, split="toxic_prompts")
    for path in paths:
        run = Run.open(path)
        run.append(
            "scores", [{**record, "label": "threat"} for record in run.read("scores") if record["scorer"] == "a"]
        )
    found = compare(paths, labels=folder.run.path)
    assert "a.threat" in found.models[0].scorers
    for split, known in (("toxic_prompts", True), ("all", False), ("nontoxic_prompts", False)):
        assert (found.models[0].scorers["a"][split].corrected_fraction is not None) == known
        assert found.models[0].scorers["a.threat"][split].corrected_fraction is None


def test_labels_of_other_answers_are_refused(tmp_path: Path) -> None:
    folder, paths, _ = labelled_folder(tmp_path, 40)
    other, _ = scored(tmp_path / "other", "other", prompts=60, seed=9)
    with pytest.raises(RunError, match="has labels of PT, FT, and of no answer in"):
        compare([other], labels=folder.run.path)
    # A run that was moved is known by its answers.
    moved = tmp_path / "elsewhere"
    paths[0].rename(moved)
    assert compare([moved], labels=folder.run.path).models[0].scorers["a"]["all"].corrected_fraction is not None
    # One without labels stands beside one that has some.
    both = compare([moved, other], labels=folder.run.path)
    assert both.models[1].scorers["a"]["all"].corrected_fraction is None
    assert all(change.corrected_delta is None for change in both.comparisons)


def test_rogan_gladen_by_known_errors_is_the_formula() -> None:
    errors = JudgeErrors(200, 150, 800, 80)  # sensitivity .75, specificity .9
    before, after = np.zeros((200, 2)), np.zeros((200, 2))
    before[:80], after[:40] = 1, 1
    one, two = share_by_errors(before, errors), share_by_errors(after, errors)
    assert one is not None
    assert two is not None
    assert one.fraction == pytest.approx((0.4 + 0.9 - 1) / 0.65)
    change = change_by_errors(before, after, errors)
    assert change is not None
    assert change.delta == pytest.approx(two.fraction - one.fraction) == pytest.approx(-0.2 / 0.65)
    assert change.ci95 is not None
    # Errors stretch a change, and never make one: its sign stays as sure as the judge's own.
    assert change.ci95[1] < 0
    nothing = change_by_errors(before, before, errors)
    assert nothing is not None
    assert nothing.delta == 0
    assert change_by_errors(before, after, JudgeErrors(100, 10, 100, 20)) is None, "worse than a guess"
    assert change_by_errors(before, after, None) is None


def test_the_interval_of_a_change_by_known_errors_holds_the_truth() -> None:
    """Judges with a sensitivity of .8 and a specificity of .95, whose errors were counted on 150 + 350 texts."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        truth = [(rng.random((250, 2)) < share).astype(float) for share in (0.3, 0.15)]
        calls = [np.where(one == 1, rng.random(one.shape) < 0.8, rng.random(one.shape) < 0.05) for one in truth]
        errors = JudgeErrors(150, rng.binomial(150, 0.8), 350, rng.binomial(350, 0.05))
        found = change_by_errors(calls[0].astype(float), calls[1].astype(float), errors)
        assert found is not None
        assert found.ci95 is not None
        held += found.ci95[0] <= -0.15 <= found.ci95[1]
    assert scipy_stats.binomtest(held, 400).proportion_ci().high > 0.95
    assert held / 400 > 0.93


FIGURES = {
    "a": {
        "figures": {
            "suite": {
                "kind": "labels", "scored": 500, "accuracy": 0.9, "false_negative_rate": 0.3,
                "false_positive_rate": 0.05, "revision": None,
            },
            "graded": {"kind": "scores"},
        }
    }
}  # fmt: skip


def test_errors_on_a_suite_are_counted_back_from_its_figures(tmp_path: Path) -> None:
    path, _ = scored(tmp_path / "PT", "PT")
    from rewardlm.measuring.grid import Rule
    from rewardlm.measuring.measured import load_measured

    runs, rule = [load_measured(path)], Rule(0.5, False, 100, 0)
    errors = errors_on_suite("suite", runs, ["a", "b"], rule, figures=FIGURES)
    assert set(errors) == {"a"}
    # 100 positives, 30 missed; 400 negatives, 20 called: 50 errors of 500.
    assert (errors["a"].positives, errors["a"].negatives) == (100, 400)
    assert errors["a"].sensitivity == pytest.approx(0.7)
    assert errors["a"].specificity == pytest.approx(0.95)
    # At another threshold nothing is known of its errors.
    assert errors_on_suite("suite", runs, ["a"], Rule(0.6, False, 100, 0), figures=FIGURES) == {}
    with pytest.raises(ConfigError, match="errors_suite is 'suit': did you mean 'suite'"):
        errors_on_suite("suit", runs, ["a"], rule, figures=FIGURES)
    found = compare([path], correction="rogan-gladen")
    assert found.models[0].scorers["a"]["all"].correction is None, "nobody knows this judge's errors"
    assert found.correction_notes[0].startswith("Not corrected: PT. How often a judge errs is known only of")
    # An imported column may have a judge's name; whose scores these are nobody knows.
    other = {"a": {"figures": {"suite": {**FIGURES["a"]["figures"]["suite"], "revision": "other"}}}}
    assert errors_on_suite("suite", runs, ["a"], rule, figures=other) == {}


def test_ppi_needs_labels() -> None:
    with pytest.raises(ValueError, match="correction ppi needs labels"):
        CompareSettings(correction="ppi")


def test_runs_with_the_same_answers_share_their_labels(tmp_path: Path) -> None:
    path, truth = scored(tmp_path / "PT", "PT", prompts=60)
    (tmp_path / "copy").symlink_to(path)
    folder = label_folder(LabelSettings(labels=80), [path, tmp_path / "copy"], tmp_path / "labels")
    folder.add([Said(one.id, "x", float(truth[one.answer]), "now") for one in folder.items])
    found = compare([path, tmp_path / "copy"], labels=folder.run.path)
    different = len({one.answer for one in folder.items})
    assert different > 40
    assert found.correction_notes == [], "an answer that was drawn from both is one answer"
    for model in found.models:
        assert model.scorers["a"]["all"].labels == different
    assert all(change.corrected_delta == 0 for change in found.comparisons if change.corrected_delta is not None)


def test_why_nothing_was_corrected_is_said(tmp_path: Path) -> None:
    folder, paths, _ = labelled_folder(tmp_path, 15)
    found = compare(paths, labels=folder.run.path)
    assert [note.split(";")[0] for note in found.correction_notes] == [
        "Not corrected: PT. It has 8 labels", "Not corrected: FT. It has 7 labels",
    ]  # fmt: skip
    folder, paths, _ = labelled_folder(tmp_path / "more", 60)
    folder.add([Said(folder.items[0].id, "x", None, "now")])
    found = compare(paths, labels=folder.run.path)
    assert [note.split(".")[0] for note in found.correction_notes] == ["1 answer could not be told"]
    assert rows(found)
    # Where only another split was labelled, that one is shown.
    folder, paths, _ = labelled_folder(tmp_path / "others", 60, split="nontoxic_prompts")
    assert {row["split"] for row in rows(compare(paths, labels=folder.run.path))} == {SPLITS["nontoxic_prompts"]}


def test_a_change_by_rogan_gladen_is_that_of_the_shares_that_are_shown(tmp_path: Path) -> None:
    folder, paths, _ = labelled_folder(tmp_path, 60)
    found = compare(paths, labels=folder.run.path, correction="rogan-gladen", threshold=0.35)
    before, after = (model.scorers["a"]["all"].corrected_fraction for model in found.models)
    (change,) = [one for one in found.comparisons if (one.scorer, one.split) == ("a", "all")]
    assert before is not None
    assert after is not None
    assert change.corrected_delta == pytest.approx(after - before)
