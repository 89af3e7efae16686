import base64
import hashlib
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import report_sample

from rewardlm.config import CompareSettings
from rewardlm.errors import RunError
from rewardlm.measuring.refusals import ERRORS
from rewardlm.reporting.page import build_report
from rewardlm.runs import Run, prompts_hash
from rewardlm.types import Generation, Message, Prompt, Score


def test_every_element_is_closed_and_every_link_has_its_target(page):
    assert page.unclosed == []
    assert page.stack == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert {link.removeprefix("#") for link in links} <= set(ids)


def test_sections_come_in_the_reader_s_order(page):
    sections = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    assert sections == [
        "summary", "warnings", "examples", "statistics", "confidence", "quality", "results", "flow", "training",
        "method",
    ]  # fmt: skip


def test_the_heading_is_the_verdict_and_the_title_is_what_it_is_about(parts, render):
    page = render(parts)
    names = [" ".join(page.heading.split()), " ".join(page.title.split())]
    said = "Reinforcement learning lowered the toxic share of all answers, at a price and with doubts"
    assert all(said in name for name in names)
    assert names[1].endswith("· A test of the page")


def test_a_page_without_a_finding_is_not_headed_by_one(parts, render):
    for change in parts["result"]["comparisons"]:
        change |= {"delta_ci95": [-0.2, 0.1], "p_value": 0.3}
    parts["title"] = "SmolLM2, detoxified"
    assert render(parts).heading == "No change of the toxic share of all answers that can be told from chance"


def test_the_contents_are_the_sections_however_they_are_named(parts, render):
    page = render(parts)
    listed = [attributes["href"] for tag, attributes in page.tags if tag == "a" and attributes["href"] != "#summary"]
    sections = [attributes for tag, attributes in page.tags if tag == "section"]
    assert [f"#{one['id']}" for one in sections[1:]] == [link for link in listed if link in {
        f"#{one['id']}" for one in sections
    }][: len(sections) - 1]  # fmt: skip
    assert next(one for one in sections if one["id"] == "warnings")["data-toc-count"] == "4"


def test_statistics_are_folded(page):
    folds = [attributes for tag, attributes in page.tags if tag == "details" and attributes.get("class") == "fold"]
    assert {"numbers", "shares", "qualities", "tables", "flows"} <= {one.get("id") for one in folds}
    assert all("open" not in one for one in folds)


def test_main_table_holds_the_numbers_that_were_put_in(page):
    rows = page.rows("Toxicity by lexical2")
    assert rows[0][:1] == ["Model"]
    assert rows[1] == ["All prompts"]
    # 91 of 700: 13.0 %; 61 of 676: 9.02 %, and 24 unscored.
    assert rows[2][0] == "PT"
    assert rows[2][1].startswith("13.0 %")
    assert rows[2][2:4] == ["0.152", "0.152"]
    assert rows[2][-2:] == ["700", "0"]
    assert rows[4][0] == "RL"
    assert rows[4][1].startswith("9.0 %")
    assert rows[4][-2:] == ["700", "24"]
    assert rows[5] == ["Toxic prompts"]
    # 47 of 309: 15.2 %, ± 1.96 · sqrt(.152 · .848 / 309) = 4.0 points.
    assert rows[8][0] == "RL"
    assert rows[8][1] == "15.2 % 11.2 – 19.2"
    assert rows[8][-2:] == ["322", "13"]


def test_judge_that_was_no_reward_comes_first_and_the_reward_is_marked(page):
    captions = [" ".join(table["caption"].split()) for table in page.tables]
    mains = [caption for caption in captions if caption.startswith("Toxicity by")]
    assert mains == [
        "Toxicity by lexical2",
        "Toxicity by lexical, which was the reward of RL: not an independent judge of it",
    ]
    for section in ("results", "confidence", "flow", "method"):
        assert "reward of RL" in page.text(section)
    assert "lexical (reward) 0.94 high" in page.text("examples")
    assert "lexical2 (reward)" not in page.text("examples")
    assert "was the reward" in page.text("summary")


def test_table_of_changes(page):
    rows = page.rows("Change from the baseline by lexical2")
    assert rows[1] == ["PT → FT"]
    assert rows[2][:6] == ["all prompts", "−1.3 −3.9 to +1.3", "0.382", "47", "38", "700"]
    assert rows[5] == ["PT → RL"]
    assert rows[6][:6] == ["all prompts", "−3.7 −6.1 to −1.3", "0.003", "52", "27", "676"]
    assert rows[6][6] == "−0.030 −0.049 to −0.011"


def test_every_split_is_there_but_empty_ones(page):
    rows = page.rows("All numbers")
    assert ["lexical2", "comparable answers", "RL"] in [row[:3] for row in rows]
    assert not [row for row in rows if row[1] == "challenging prompts"]


def test_quality_and_flow_counts(page):
    rows = {row[0]: row[1:] for row in page.rows("Quality by model")}
    assert rows["Empty answers a silent model is never toxic"] == ["0.4 %", "0.4 %", "3.4 %"]
    assert next(cells for name, cells in rows.items() if name.startswith("Similarity"))[2] == "0.443 (0.093)"
    assert next(cells for name, cells in rows.items() if name.startswith("Counter"))[0] == "—"
    flow = page.rows("Pairs by bucket of PT (rows) and RL (columns)")
    assert flow[1:] == [["low", "533", "12", "21"], ["medium", "24", "7", "2"], ["high", "33", "12", "32"]]
    # Below the diagonal 24 + 33 + 12, above it 12 + 21 + 2.
    assert "69 moved to a lower bucket and 35 to a higher one" in page.text("flow")
    assert "24 have no score on one side or both" in page.text("flow")


def test_utility_has_rows_with_intervals_once_it_was_measured(page, parts, render):
    assert not [row for row in page.rows("Quality by model") if row[0].startswith(("HellaSwag", "WikiText"))]
    parts["result"]["models"][1]["utility"] = {
        "hellaswag": {"n": 500, "value": 0.4321, "ci95": [0.391, 0.474], "unnormalised": 0.35},
        "wikitext": {"n": 60, "value": 31.26, "ci95": None, "unnormalised": None},
    }
    rows = {row[0].split()[0]: row[1:] for row in render(parts).rows("Quality by model")}
    assert rows["HellaSwag"] == ["—", "43.2 % [39.1 % to 47.4 %]", "—"]
    assert rows["WikiText"] == ["—", "31.3", "—"]
    assert "PIQA" not in rows
    assert "utility" not in page.texts


def test_what_a_model_can_still_do_has_a_section_of_its_own(parts, render):
    models = parts["result"]["models"]
    for model in models[:2]:
        model["groups"] = {"lexical2": {"women": {"mean": 0.31}, "old people": {"mean": 0.28}}}
        model["over_refusal"] = {"n": 180, "prompts": 180, "refused": 9, "fraction": 0.05, "mean_words": 61.25}
    models[1] |= {
        "utility_change": {
            "mmlu": {"from": "PT", "n": 500, "delta": 0.004, "delta_ci95": [-0.009, 0.017], "p_value": 0.6,
                     "p_adjusted": 1.0},
        },
        "over_refusal_change": {"from": "PT", "n": 180, "delta": 0.0, "delta_ci95": [-0.02, 0.02], "p_value": 1.0},
        "non_inferiority": {
            "mmlu": {"margin": 0.01, "holds": True},
            "over_refusal": {"margin": 0.01, "holds": False, "items_needed": 1413},
        },
        "groups_change": {"lexical2": {
            "from": "PT", "p_value": 0.3, "p_adjusted": 0.3,
            "groups": {"women": {"delta": -0.05, "delta_ci95": [-0.1, 0.0]}},
        }},
    }  # fmt: skip
    page = render(parts)
    rows = page.rows(f"What {models[1]['label']} can still do")
    assert rows[1] == ["MMLU", "+0.4 −0.9 to +1.7", "0.600 1.000", "500 questions", "yes"]
    assert rows[2] == ["harmless prompts refused", "±0.0 −2.0 to +2.0", "1.000 —", "180 prompts", "no, needs 1,413"]
    groups = page.rows("Answers about groups of people, mean score by lexical2")
    assert groups[1] == ["women", "0.310", "0.310 −0.050 (−0.100 to ±0.000)"]
    assert groups[2] == ["old people", "0.280", "0.280"]
    assert "no group is known to be left behind (adjusted p of equal changes = 0.300)" in page.text("utility")
    quality = {row[0].split(" they")[0]: row[1:] for row in page.rows("Quality by model")}
    assert quality["Harmless prompts refused"][:2] == ["5.0 %", "5.0 %"]
    assert quality["Words an answer to these"][:2] == ["61.2", "61.2"]


def test_counter_narratives_stand_beside_toxicity_once_they_are_judged(parts, render):
    parts["result"]["models"][2]["quality"]["counter_narrative_fraction"] = 0.0
    rows = render(parts).rows("Toxicity by lexical2")
    assert "narrative" in rows[0][5]
    assert [len(row) for row in rows if len(row) > 1] == [8] * 7
    assert rows[8][5] == "0.0 %"
    assert rows[7][5] == "—"


def test_the_shuffled_and_the_corrected_share_stand_beside_the_share(parts, render):
    model = parts["result"]["models"][2]
    model["quality"] |= {
        "counter_narrative_fraction": 0.86, "counter_narrative_null": 0.62, "counter_narrative_corrected": 0.7123,
        "counter_narrative_corrected_ci95": [0.6, 0.8],
    }  # fmt: skip
    page = render(parts)
    assert page.rows("Toxicity by lexical2")[8][5] == "86.0 % (62.0 %)"
    rows = {row[0].split(" answers to")[0]: row for row in page.rows("Quality by model")}
    assert rows["Counter-narratives"][3] == "86.0 % (62.0 %)"
    corrected = next(row for name, row in rows.items() if name.startswith("Counter-narratives, corrected"))
    assert corrected[3] == "71.2 % [60.0 % to 80.0 %]"
    text = page.text("results")
    assert "put under each other’s prompts, 62.0 % of the same answers still are" in text
    assert "share is 71.2 % (60.0 % to 80.0 %, 95 %, the judge’s own uncertainty included)" in text


Z = 1.959964


def test_the_errors_of_the_rules_for_refusals_are_named(parts, render):
    text = render(parts).text("results")
    for errors in ERRORS:
        for share, hits, n in (
            (errors.recall, errors.refusals_found, errors.refusals),
            (errors.precision, errors.refusals_found, errors.refusals_found + errors.compliances_called),
        ):
            # Wilson's bounds are the shares p with (hits / n - p)² = z² p (1 - p) / n.
            low, high = sorted(np.roots([1 + Z**2 / n, -2 * hits / n - Z**2 / n, (hits / n) ** 2]).real)
            assert share == hits / n
            assert f"{100 * share:.1f} % ({100 * low:.1f} % to {100 * high:.1f} %)" in text
        assert f"of the {errors.refusals} refusals among {errors.on}" in text


def test_the_disagreement_of_an_ensemble_is_said_beside_it(parts, render):
    assert "disagreement" not in render(parts).text("results")
    found = {"scored": 690, "mean": 0.1234, "fraction_over_half": 0.0321}
    parts["result"]["models"][1]["disagreement"] = {"lexical2": found}
    text = render(parts).text("results")
    assert "FT 0.123 on average, over 0.5 for 3.2 % of 690 answers." in text
    assert text.count("disagreement") == 1


def test_the_judge_of_counter_narratives_and_its_errors_are_named(parts, render):
    model = parts["result"]["models"][2]
    model["quality"]["counter_narrative_fraction"] = 0.25
    error = {"on": "CONAN.csv", "n": 1234, "accuracy": 0.71, "precision": 0.52, "recall": 0.83, "auc_hate": 0.9}
    model["pair_judge"] = {"name": "starter_pairs", "revision": "abc", "error": error}
    text = render(parts).text("results")
    for part in ("by starter_pairs", "1,234 pairs", "CONAN.csv", "71.0 %", "83.0 %", "52.0 %"):
        assert part in text, part
    assert "different judges" not in text
    other = parts["result"]["models"][1]
    other["quality"]["counter_narrative_fraction"] = 0.5
    other["pair_judge"] = {"name": "/home/somebody/mine", "revision": "def", "error": None}
    text = render(parts).text("results")
    assert "by mine, whose errors nobody has measured" in text
    assert "somebody" not in text
    assert "different judges" in text


def test_warnings_are_shown_in_full_and_errors_come_first(parts, render):
    parts["result"]["warnings"].append({"code": "prompts_differ", "model": "FT", "message": "Two lists of prompts."})
    text = render(parts).text("warnings")
    for warning in parts["result"]["warnings"]:
        assert warning["message"] in text
        assert warning["code"] in text
    assert text.index("prompts_differ") < text.index("judge_is_reward")


def test_no_warnings_says_what_was_looked_for(parts, render):
    parts["result"]["warnings"] = []
    assert "found nothing to warn of" in render(parts).text("warnings")


def test_offensive_texts_are_folded_away_and_others_are_not(page):
    examples = report_sample.sample_examples()
    text = page.text("examples")
    assert "Content note" in text
    folded = 0
    assert all(example["prompt"] in text for example in examples)
    veils = [attributes for tag, attributes in page.tags if tag == "details" and attributes.get("class") == "veil"]
    assert all("open" not in veil for veil in veils)
    for example in examples:
        folded += example["toxicity"] >= 0.33
        folded += bool(example["history"])
        for answer in example["answers"]:
            scores = [score for score in answer["scores"].values() if score is not None]
            folded += bool(answer["text"]) and (not scores or max(scores) >= 0.33)
    assert len(veils) == folded


def test_examples_say_how_they_were_chosen(page):
    text = page.text("examples")
    assert "Chosen by rule, not by hand, by lexical2’s scores from PT to RL" in text
    assert "equally many of each kind, readable answers first" in text
    assert "of 676 pairs of answers 90 fell, 540 hardly changed and 46 rose" in text


def test_method_names_models_settings_and_limits(page):
    text = page.text("method")
    for expected in ("smollm2-135m", "rl/adapter", "rtp:packaged", "700 prompts", "score > 0.5", "torch", "2.10.0"):
        assert expected in text
    for sentence in report_sample.sample_about()["limits"]:
        assert sentence in text
    rows = page.rows("Settings and seeds")
    assert ["seed", "13"] in rows
    assert ["adapter", "—", "ft/adapter", "rl/adapter"] in rows
    assert ["generation.top_p", "0.9"] in rows


def test_training_warnings_are_told_once_a_kind(parts, render):
    for record in parts["training"]["RL, PPO"][50:60]:
        record["warnings"] = [f"entropy collapse: 0.0{record['step']} nats a token"]
    text = render(parts).text("training")
    assert "step 51: entropy collapse: 0.051 nats a token (and 9 more such steps)" in text
    assert text.count("entropy collapse") == 1


def test_everything_may_be_missing(parts, render):
    parts["result"] = {"models": parts["result"]["models"][:1], "comparisons": [], "warnings": []}
    page = render(parts | {"examples": [], "training": {}, "about": {}})
    assert "Nothing was compared" in page.text("summary")
    assert "no pairs of scored answers" in page.text("examples")
    assert "training" not in page.texts


def test_policy_lets_only_the_page_s_own_scripts_run(page):
    policy = next(meta["content"] for meta in page.metas if meta.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    assert re.search(r"script-src ([^;]*);", policy)[1].count("'") == 6
    code = [text for attributes, text in page.scripts if attributes.get("type") != "application/json"]
    assert len(code) == 3  # plotly's, the page's, and what interprets it
    for text in code:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert not [attributes for tag, attributes in page.tags if any(name.startswith("on") for name in attributes)]
    assert not [attributes for _, attributes in page.tags if "src" in attributes]


def test_data_blocks_are_json_and_hold_no_markup(parts, render):
    for model in parts["result"]["models"]:
        model["label"] += "</script><script>alert(1)</script>"
    for comparison in parts["result"]["comparisons"]:
        for key in ("from", "to"):
            comparison[key] += "</script><script>alert(1)</script>"
    page = render(parts)
    data = [text for attributes, text in page.scripts if attributes.get("type") == "application/json"]
    # Changes, 2 judges' shares, 4 flows, 1 curve of SFT and 6 of RLAF.
    assert len(data) == 14
    assert all("data" in json.loads(text) for text in data)
    assert all("<" not in text for text in data)
    assert len(page.scripts) == 14 + 3


def test_what_html_cannot_hold_is_replaced(parts, render):
    parts["examples"][3]["prompt"] = "a\x00b\ud800c\x1bd"
    page = render(parts)
    assert "a\ufffdb\ufffdc\ufffdd" in page.text("examples")
    page.texts["examples"].encode()


def make_run(path, label, values, *, kind="measure", **meta):
    prompts = [
        Prompt(f"p{i}", (Message("user", f"Prompt number {i}"),), "made up", 0.9 if i % 2 else 0.1) for i in range(20)
    ]
    run = Run.start(path, kind=kind, label=label, settings={"model": "tiny", "seed": 3})
    run.append("prompts", prompts)
    generations = [Generation(f"{p.id}-0", p.id, label, 0, f"{label} says {p.id}", 4, "stop", 3) for p in prompts]
    run.append("generations", generations)
    for name, shift in (("one", 0.0), ("two", 0.01)):
        run.append(
            "scores",
            [Score(g.id, name, "toxicity", min(v + shift, 1.0)) for g, v in zip(generations, values, strict=True)],
        )
    run.update(status="finished", model="tiny", toxic_by="dataset", prompts_hash=prompts_hash(prompts), **meta)
    return run


def test_report_of_run_directories(tmp_path, parse):
    asked = {"source": "rtp:packaged", "part": "measure", "n": 20}
    make_run(tmp_path / "pt", "PT", [0.9 if i < 10 else 0.1 for i in range(20)], rewards=[], prompts=asked)
    # Ten fall, p15 rises, the other nine stay.
    after = [0.2 if i < 10 else 0.95 if i == 15 else 0.1 for i in range(20)]
    make_run(tmp_path / "rl", "RL", after, rewards=["one"])
    training = Run.start(tmp_path / "train", kind="rlaf", label="RL", settings={})
    training.append("metrics", [{"step": step, "reward_mean": 0.1 * step} for step in range(5)])
    experiment = Run.start(tmp_path / "whole", kind="experiment", label="x", settings={})
    experiment.update(runs=["../pt", "../rl", "../train"])
    every = CompareSettings(primary={"split": "all"})
    out = build_report([experiment.path], tmp_path / "new" / "report.html", settings=every)
    page = parse(out.read_text(encoding="utf-8"))
    assert page.unclosed == []
    summary = page.text("summary")
    assert "Primary outcome: the toxic share of all answers by two. It was chosen after measuring" in summary
    assert "By two, which was not a reward in training" in summary
    # 10 of 20 toxic, then 1 of 20.
    assert "from 50.0 % of PT’s answers in these pairs to 5.0 % of RL’s" in summary
    assert "fell by 45.0 percentage points" in summary
    # Nobody knows what made RL, but that it was trained on one.
    assert "from 50.0 % with PT to 5.0 % with RL (−45.0 points, 95 % interval −" in summary
    examples = page.text("examples")
    # Ten falls of one size: three are the largest third, three the middle one.
    assert examples.count("RL says") == 2 + 2 + 2 + 1
    assert examples.index("Got worse") < examples.index("RL says p15")
    assert "of 20 pairs of answers 10 fell, 9 hardly changed and 1 rose" in examples
    assert "Reward" in page.text("training")
    assert "rtp:packaged, the part to measure: 20 prompts" in page.text("method")
    assert str(tmp_path) not in out.read_text(encoding="utf-8")
    again = build_report([experiment.path], tmp_path / "again.html", settings=every)
    assert again.read_bytes() == out.read_bytes()


def test_two_runs_of_one_label_are_told_apart(tmp_path, parse):
    make_run(tmp_path / "a", "X", [0.9] * 20, rewards=[])
    make_run(tmp_path / "b", "X", [0.1] * 20, rewards=["two"])
    page = parse(build_report([tmp_path / "a", tmp_path / "b"], tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "By one, which was not a reward in training" in page.text("summary")
    assert "By two, the reward that X (2) was trained on" in page.text("summary")


def test_nothing_measured_is_an_error(tmp_path):
    Run.start(tmp_path / "train", kind="finetune", label="FT", settings={})
    with pytest.raises(RunError, match="nothing to report"):
        build_report([tmp_path / "train"], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_an_experiment_in_itself_is_an_error(tmp_path):
    Run.start(tmp_path / "x", kind="experiment", label="x", settings={}).update(runs=["."])
    with pytest.raises(RunError, match="lists itself"):
        build_report([tmp_path / "x"], tmp_path / "r.html")


def test_importing_the_page_imports_no_heavy_library():
    code = (
        "import sys, rewardlm.reporting.page as p; "
        "print([m for m in ('torch', 'transformers', 'plotly', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
