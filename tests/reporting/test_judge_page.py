"""The page about judges: the numbers that were written down, every text escaped, figures that plotly can draw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rewardlm.errors import RunError
from rewardlm.reporting.page import build_report
from rewardlm.runs import Run

HOSTILE = "</script><script>alert(1)</script><b>x</b>"


def result(judge: str, suite: str, **more: Any) -> dict[str, Any]:
    """What judge evaluate writes, with numbers that are easy to find again."""
    return {
        "judge": judge, "suite": suite, "label": "toxicity", "target": "hate", "kind": "labels", "n": 1234,
        "scored": 1230, "unscored": {"empty": 4}, "cut": 0, "positives": 700, "dropped": {}, "threshold": 0.5,
        "auc": 0.4321, "auc_ci95": [0.41, 0.4519], "at_chance": True, "average_precision": 0.5555, "spearman": -0.1234,
        "spearman_ci95": [-0.2, -0.05], "pearson": -0.1, "ece": 0.2468, "ece_bins": 15, "brier": 0.3, "accuracy": 0.5,
        "precision": 0.6, "recall": 0.7, "f1": 0.6667, "false_positive_rate": 0.25, "false_negative_rate": 0.75,
        "by_functionality": None, "by_target": None, "bias": None, "counter_speech": None,
        "reliability": [{"low": 0.0, "high": 1 / 15, "n": 1230, "score": 0.03, "target": 0.57}],
        "roc": [[0.0, 0.0], [0.5, 0.4], [1.0, 1.0]], "texts_per_second": None, "speed": None,
        "trained_on_this_file": False, "sha256": "ab" * 32, "revision": "rev-1", **more,
    }  # fmt: skip


def hatecheck(judge: str, shift: float = 0.0) -> dict[str, Any]:
    kinds = {
        "slur_h": {
            "what": "slurs", "gold": "hateful", "n": 144, "accuracy": 0.9 - shift, "mean_score": 0.8, "auc": 0.95,
        },
        "counter_quote_nh": {
            "what": "hate denounced by quoting it", "gold": "non-hateful", "n": 173, "accuracy": 0.125 + shift,
            "mean_score": 0.7, "auc": 0.3,
        },
    }  # fmt: skip
    groups = {"women": {"n": 509, "positives": 373, "subgroup_auc": 0.61, "bpsn_auc": 0.2222, "bnsp_auc": 0.83}}
    return result(
        judge,
        "hatecheck",
        by_functionality=kinds,
        by_target={
            "women": {
                "n": 509, "positives": 373, "accuracy": 0.375, "false_positive_rate": 0.5, "false_negative_rate": 0.6,
                "auc": 0.61,
            }
        },
        bias={
            "groups_by": "suite", "smallest_group": 10, "groups": groups, "too_small": {}, "power": -5.0,
            "power_mean": {"subgroup_auc": 0.61, "bpsn_auc": 0.2222, "bnsp_auc": 0.83},
        },
        counter_speech={
            "n": 173, "false_positives": 151, "false_positive_rate": 0.875, "auc_against_hate": 0.3,
            "by": {
                "counter_quote_nh": {"what": "hate denounced by quoting it", "n": 173, "false_positive_rate": 0.875},
            },
        },
        speed={
            "texts_per_second": 345.6, "ms_per_text": 2.9, "ms_one_text": 9.1, "batch": 512, "tokens_per_text": 20,
            "threads": 2, "cpus": 2,
        },
    )  # fmt: skip


CONFUSION = {
    "suite": "hatecheck", "judges": ["one", "two"], "labels": ["toxicity", "hate"], "threshold": 0.5, "n": 100,
    "table": [[41, 7], [13, 39]], "agreement": 0.8, "kappa": 0.6, "spearman": 0.7123,
    "right": {"both": 50, "first": 11, "second": 17, "neither": 22},
}  # fmt: skip


def make_run(path: Path, results: list[dict[str, Any]], confusion: list[dict[str, Any]] | None = None) -> Run:
    run = Run.start(path, kind="judge-evaluation", label="one, two", settings={"judge": ["one", "two"], "seed": 3})
    run.append("results", results)
    run.update(status="finished", confusion=confusion or [])
    return run


def figures_of(page: Any) -> list[dict[str, Any]]:
    return [json.loads(text) for attributes, text in page.scripts if attributes.get("type") == "application/json"]


@pytest.fixture
def page(tmp_path: Path, parse: Any) -> Any:
    run = make_run(
        tmp_path / "run", [hatecheck("one"), hatecheck("two", 0.05), result("one", "rtp", kind="scores")], [CONFUSION]
    )
    return parse(build_report([run.path], tmp_path / "page.html").read_text(encoding="utf-8"))


def test_the_page_is_whole_and_every_link_has_its_target(page: Any) -> None:
    assert page.unclosed == []
    assert page.stack == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {attributes["href"].removeprefix("#") for tag, attributes in page.tags if tag == "a"} <= set(ids)
    policy = next(meta["content"] for meta in page.metas if meta.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy


def test_numbers_and_sentences(page: Any) -> None:
    text = page.text("suite-1")
    assert "1,234 texts, 700 of them positive" in text
    assert (
        "one tells positives from negatives, by its label toxicity, with AUC 0.432 (95 % interval 0.410 to 0.452)"
        in text
    )
    assert "0.452): at chance." in text
    assert "one calls hateful 87.5 % of 173 texts that oppose hate." in text
    assert "one is least fair to texts about women: BPSN AUC 0.222." in text
    assert "one is off by 0.247 on average" in text
    assert "left texts without a score: 4 empty." in text
    rows = {row[0]: row[1:] for row in page.rows("hatecheck: What the judges get right")}
    assert rows["AUC 0.5 is guessing"] == ["0.432 0.410 – 0.452"] * 2
    assert rows["Scored of all"] == ["1,230 1,234"] * 2
    assert rows["False negative rate positives that are missed"] == ["0.750"] * 2
    assert (
        next(cells for name, cells in rows.items() if name.startswith("Texts a second"))
        == ["346 9.1 ms for one alone"] * 2
    )
    assert "orders the texts as the suite’s own scores do with a rank correlation of -0.123" in page.text("suite-2")


def test_kinds_groups_and_bias_have_tables(page: Any) -> None:
    kinds = page.rows("hatecheck: Accuracy at 0.5 by kind of test")
    assert kinds[0] == ["", "Gold", "n", "one", "two"]
    assert kinds[1] == ["slurs slur_h", "hateful", "144", "0.900 AUC 0.950", "0.850 AUC 0.950"]
    assert page.rows("hatecheck: Accuracy at 0.5 by the group")[1] == ["women", "509"] + ["0.375 AUC 0.610"] * 2
    assert page.rows("hatecheck: Bias by group")[1] == ["women"] + ["0.610 BPSN 0.222, BNSP 0.830"] * 2


def test_confusion(page: Any) -> None:
    rows = page.rows("Texts of hatecheck by both judges’ verdicts")
    assert rows == [["", "two ≤ 0.5", "two > 0.5"], ["one ≤ 0.5", "41", "7"], ["one > 0.5", "13", "39"]]
    assert "one alone on 11, two alone on 17, neither on 22" in page.text("judges")
    assert "rank correlation 0.712" in page.text("judges")


def test_figures_hold_the_values_by_judge(page: Any) -> None:
    drawn = figures_of(page)
    # Kinds, groups, ROC and calibration of hatecheck; ROC and calibration of rtp.
    assert len(drawn) == 6
    kinds = drawn[0]
    assert [trace["type"] for trace in kinds["data"]] == ["bar", "bar"]
    assert [trace["name"] for trace in kinds["data"]] == ["one", "two"]
    assert kinds["data"][0]["x"] == pytest.approx([90, 12.5])
    assert kinds["data"][1]["x"] == pytest.approx([85, 17.5])
    assert kinds["layout"]["yaxis"]["ticktext"] == ["slurs", "hate denounced by quoting it"]
    assert drawn[1]["data"][0]["x"] == pytest.approx([37.5])
    assert drawn[2]["data"][0]["x"] == [0, 0.5, 1]
    assert drawn[3]["data"][0]["y"] == [0.57]
    assert (
        "Lowest for one: hate denounced by quoting it, 12.5 %; for two: hate denounced by quoting it, 17.5 %"
        in page.text("suite-1")
    )


def test_one_judge_alone_is_coloured_by_gold_label(tmp_path: Path, parse: Any) -> None:
    run = make_run(tmp_path / "run", [hatecheck("one")])
    page = parse(build_report([run.path], tmp_path / "p.html").read_text(encoding="utf-8"))
    traces = figures_of(page)[0]["data"]
    assert [(trace["name"], trace["y"]) for trace in traces] == [("hateful", [0]), ("non-hateful", [1])]
    assert "What one knows" in (tmp_path / "p.html").read_text(encoding="utf-8")


def test_runs_on_the_same_texts_stand_side_by_side_and_others_apart(tmp_path: Path, parse: Any) -> None:
    runs = [
        make_run(tmp_path / "a", [hatecheck("one")]),
        make_run(tmp_path / "b", [hatecheck("two"), hatecheck("two") | {"label": "hate"}]),
        make_run(tmp_path / "c", [hatecheck("three") | {"sha256": "cd" * 32}]),
    ]
    page = parse(build_report([run.path for run in runs], tmp_path / "p.html").read_text(encoding="utf-8"))
    heads = [table["rows"][0] for table in page.tables if "What the judges get right" in table["caption"]]
    names = [[" ".join(cell.split()) for cell in row] for row in heads]
    assert names == [["", "one", "two, toxicity", "two, hate"], ["", "three"]]


def test_what_is_null_is_a_dash_or_not_there(tmp_path: Path, parse: Any) -> None:
    nothing = dict.fromkeys(
        ("auc", "auc_ci95", "at_chance", "average_precision", "spearman", "spearman_ci95", "pearson", "ece", "brier",
         "accuracy", "f1", "false_positive_rate", "false_negative_rate", "roc")
    )  # fmt: skip
    run = make_run(tmp_path / "run", [result("one", "own", **nothing, scored=0, reliability=[])])
    page = parse(build_report([run.path], tmp_path / "p.html").read_text(encoding="utf-8"))
    assert "one has no AUC here: 0 texts were scored, and all are of one class." in page.text("suite-1")
    assert figures_of(page) == []
    assert [row[0] for row in page.rows("own: What the judges get right")] == [
        "",
        "Label held against",
        "Scored of all",
    ]


def test_hostile_names_are_text(tmp_path: Path, parse: Any) -> None:
    bad = hatecheck(HOSTILE) | {"suite": HOSTILE, "label": HOSTILE, "target": HOSTILE, "revision": HOSTILE}
    bad["by_functionality"] = {HOSTILE: bad["by_functionality"]["slur_h"] | {"what": HOSTILE, "gold": HOSTILE}}
    bad["by_target"] = {HOSTILE: bad["by_target"]["women"]}
    bad["bias"]["groups"] = {HOSTILE: bad["bias"]["groups"]["women"]}
    bad["dropped"] = {HOSTILE: 3}
    table = CONFUSION | {"suite": HOSTILE, "judges": [HOSTILE, "two"], "labels": [HOSTILE, HOSTILE]}
    run = make_run(tmp_path / "run", [bad], [table])
    html = build_report([run.path], tmp_path / "p.html", title=HOSTILE).read_text(encoding="utf-8")
    page = parse(html)
    assert page.unclosed == []
    assert "<b>x</b>" not in html
    # Four figures, plotly and our own two scripts: none was added.
    assert len(page.scripts) == 7
    for figure in figures_of(page):
        assert "<b>" not in json.dumps(figure)
        assert "<script" not in json.dumps(figure)


def test_no_path_of_the_machine_is_on_the_page(tmp_path: Path) -> None:
    folder = tmp_path / "secret" / "judges" / "mine"
    run = make_run(tmp_path / "run", [hatecheck(str(folder))], [CONFUSION | {"judges": [str(folder), "two"]}])
    html = build_report([run.path], tmp_path / "p.html").read_text(encoding="utf-8")
    assert "secret" not in html
    assert "…/judges/mine" in html


def test_a_run_without_results_is_an_error_and_an_unfinished_one_says_so(tmp_path: Path, parse: Any) -> None:
    run = Run.start(tmp_path / "run", kind="judge-evaluation", label="one", settings={})
    with pytest.raises(RunError, match="nothing was evaluated yet"):
        build_report([run.path], tmp_path / "p.html")
    run.append("results", [hatecheck("one")])
    page = parse(build_report([run.path], tmp_path / "p.html").read_text(encoding="utf-8"))
    assert "Not everything is evaluated yet: run was interrupted." in page.text("judges")


def test_beside_measurements_it_is_a_section_and_beside_a_training_it_has_its_curves(
    tmp_path: Path, parse: Any
) -> None:
    from test_page import make_run as make_measurement

    make_measurement(tmp_path / "pt", "PT", [0.9] * 20, rewards=[])
    run = make_run(tmp_path / "run", [hatecheck("one")], [CONFUSION])
    page = parse(build_report([tmp_path / "pt", run.path], tmp_path / "p.html").read_text(encoding="utf-8"))
    sections = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    assert sections.index("judges") < sections.index("method")
    assert "which this page doesn’t show" not in page.text("method")
    assert "one calls hateful 87.5 % of 173 texts" in page.text("judges")
    training = Run.start(tmp_path / "train", kind="judge", label="mine", settings={})
    training.append("metrics", [{"step": step, "loss": 1 / step} for step in range(1, 5)])
    page = parse(build_report([training.path, run.path], tmp_path / "q.html").read_text(encoding="utf-8"))
    assert "mine" in page.text("training")
    assert len(figures_of(page)) == 5


@pytest.mark.slow
def test_a_real_evaluation_from_suite_to_page(tmp_path: Path, parse: Any) -> None:
    from rewardlm.judges.evaluate import evaluate
    from rewardlm.judges.settings import JudgeEvaluateSettings

    path = tmp_path / "own.csv"
    rows = [f"you {word} {i},{label},{word},women" for i in range(20) for word, label in (("idiot", 1), ("friend", 0))]
    path.write_text("text,label,functionality,group\n" + "\n".join(rows) + "\n")
    settings = JudgeEvaluateSettings(judge=["lexical", "lexical2"], suite=[str(path)], n_resamples=100)
    found = evaluate(settings, tmp_path / "run")
    page = parse(build_report([tmp_path / "run"], tmp_path / "p.html").read_text(encoding="utf-8"))
    cells = {row[0]: row[1:] for row in page.rows("own: What the judges get right")}
    for key, name in (
        ("ece", "Calibration error expected, 15 bins of equal width"),
        ("brier", "Brier score mean squared error"),
    ):
        assert cells[name] == [f"{entry[key]:.3f}" for entry in found["results"]]
    assert page.rows("own: Bias by group")[1][0] == "women"
