"""The list of judges: what can be used here, whose figures are known, and what counts as at chance."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from fake_service import FakeService
from rewardlm.errors import ConfigError, DataError, ScorerError
from rewardlm.judges import listing
from rewardlm.judges.card import add_to_card, card_folder
from rewardlm.judges.listing import at_chance, list_judges, measure_figures, packaged_figures
from rewardlm.judges.results import figures_of
from rewardlm.judges.settings import JudgeListSettings
from rewardlm.packaged import MPNET_INSTALL, has_mpnet
from rewardlm.scoring.load import load_scorer
from rewardlm.scoring.record import shipped_folder

needs_mpnet = pytest.mark.skipif(not has_mpnet(), reason=f"the encoder mpnet is not installed: {MPNET_INSTALL}")
RECORD = {
    "kind": "text",
    "labels": ["toxicity", "hate"],
    "main": "toxicity",
    "encoder": "sentence-transformers/all-MiniLM-L6-v2",
    "max_length": 128,
    "command": "rewardlm judge train --data mine.csv --out DIR",
    "seed": 0,
    "calibrated": {"toxicity": "platt"},
    "data": [{"kind": "mine", "texts": 12, "licence": None, "sha256": "0" * 64}],
}


@pytest.fixture
def judge(tmp_path: Path) -> Path:
    """A folder that a training left, as far as the list reads it."""
    folder = tmp_path / "judges" / "mine"
    folder.mkdir(parents=True)
    (folder / "judge.json").write_text(json.dumps(RECORD))
    return folder


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.csv"
    rows = [f"you {word} number {i},{label}" for i in range(20) for word, label in (("idiot", 1), ("friend", 0))]
    path.write_text("text,label\n" + "\n".join(rows) + "\n")
    return path


def named(judges: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {judge["name"]: judge for judge in judges}


def test_every_judge_says_what_it_is_and_what_it_needs() -> None:
    judges = named(list_judges(JudgeListSettings()))
    assert list(judges)[:5] == ["starter", "starter-large", "witness", "toxicity+hate", "lexical"]
    for judge in judges.values():
        assert judge["what"]
        assert judge["usable"] == (judge["needs"] is None)
    assert [judge["needs"] for name, judge in judges.items() if "/" in name] == ["the hub, on first use"] * 3


def test_judges_over_http_say_what_they_need_until_they_have_it(
    service: FakeService, monkeypatch: pytest.MonkeyPatch, own: Path
) -> None:
    judges = named(list_judges(JudgeListSettings()))
    assert "closes on 2026-12-31" in judges["perspective"]["what"]
    assert judges["perspective"]["needs"] == "a key in PERSPECTIVE_API_KEY"
    assert "REWARDLM_ENDPOINT_URL" in judges["endpoint"]["needs"]
    monkeypatch.setenv("PERSPECTIVE_API_KEY", "k")
    monkeypatch.setenv("REWARDLM_ENDPOINT_URL", service.url)
    settings = JudgeListSettings.model_validate({"services": {"endpoints": {"mine": {"url": service.url}, "b": {}}}})
    judges = named(list_judges(settings))
    assert [judges[name]["usable"] for name in ("perspective", "endpoint", "endpoint:mine", "endpoint:b")] == [
        True, True, True, False
    ]  # fmt: skip
    # Nobody is asked, and paid, who was not named.
    asked: list[str] = []
    monkeypatch.setattr(listing, "measure_figures", lambda names, *_, **__: asked.extend(names) or {})
    list_judges(JudgeListSettings(measure=True, suite=[str(own)]))
    assert "lexical" in asked
    assert not {"perspective", "endpoint"} & set(asked)
    assert service.asked == []


@pytest.mark.parametrize("name", ["lexical", "lexical2"])
def test_what_is_called_usable_can_be_loaded_and_what_is_gone_is_not(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert named(list_judges(JudgeListSettings()))[name]["usable"]
    load_scorer(name)
    find = importlib.util.find_spec
    package = {"lexical": "profanity_check", "lexical2": "tox_block"}[name]
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None if wanted == package else find(wanted))
    judge = named(list_judges(JudgeListSettings()))[name]
    assert not judge["usable"]
    assert judge["needs"].startswith("pip install ")


@pytest.mark.slow
def test_shipped_figures_are_of_the_judges_that_are_installed() -> None:
    figures = packaged_figures()
    assert set(figures) == {"lexical", "lexical2", "starter", "starter-large", "witness", "toxicity+hate"}
    for name in figures.keys() - ({"starter-large"} if not has_mpnet() else set()):
        # Both of the preset's judges are starter.
        revision = load_scorer("starter" if name == "toxicity+hate" else name).revision  # type: ignore[attr-defined]
        assert {"hatecheck", "rtp", "jigsaw"} <= set(figures[name]["figures"])
        for entry in figures[name]["figures"].values():
            assert entry["revision"] == revision
            assert entry["auc_ci95"][0] < entry["auc"] < entry["auc_ci95"][1]
        assert figures[name]["speed"]["texts_per_second"] > 0


@pytest.mark.parametrize("name", ["starter", pytest.param("starter-large", marks=needs_mpnet), "witness"])
def test_a_shipped_card_is_of_the_shipped_weights(name: str) -> None:
    folder = shipped_folder(name)
    assert folder is not None
    metrics = json.loads((folder / "judge.json").read_text())["metrics"]
    assert {"hatecheck", "rtp", "jigsaw"} <= set(metrics)
    assert {entry["revision"] for entry in metrics.values()} == {load_scorer(name).revision}  # type: ignore[attr-defined]


def test_the_shipped_judges_are_as_good_as_said() -> None:
    """The floors that they were trained for; the card and figures.json hold them, and are of these weights."""
    figures = {name: packaged_figures()[name]["figures"] for name in ("starter", "starter-large", "witness")}
    assert figures["starter"]["hatecheck"]["auc"] >= 0.84
    assert figures["starter"]["rtp"]["spearman"] >= 0.89
    assert figures["starter-large"]["hatecheck"]["auc"] >= 0.90
    assert figures["starter-large"]["rtp"]["spearman"] >= 0.91
    assert figures["witness"]["hatecheck"]["auc"] >= 0.75
    assert figures["witness"]["rtp"]["spearman"] >= 0.80
    # All of the measuring half counts, prompts and continuations.
    assert all(found["rtp"]["n"] > 1_700 for found in figures.values())


@pytest.mark.slow
def test_shipped_figures_come_out_again(monkeypatch: pytest.MonkeyPatch, shared_data: Path) -> None:
    monkeypatch.setenv("REWARDLM_DATA", str(shared_data))
    again = measure_figures(["lexical"], JudgeListSettings(suite=["hatecheck", "rtp"]))["lexical"]["figures"]
    shipped = packaged_figures()["lexical"]["figures"]
    for suite, entry in again.items():
        assert entry["sha256"] == shipped[suite]["sha256"]
        for key in ("n", "auc", "spearman", "ece", "f1", "counter_speech_false_positive_rate"):
            assert entry[key] == pytest.approx(shipped[suite][key]), (suite, key)


def test_the_lexical_judges_are_at_chance_on_hatecheck_and_not_on_rtp() -> None:
    judges = named(list_judges(JudgeListSettings(names=["lexical", "lexical2"])))
    assert list(judges) == ["lexical", "lexical2"]
    for judge in judges.values():
        wholes = {entry["suite"] for entry in judge["at_chance"] if entry["functionality"] is None}
        assert "hatecheck" in wholes
        assert not wholes & {"rtp", "jigsaw"}
        kinds = {entry["functionality"] for entry in judge["at_chance"]}
        assert {"counter_quote_nh", "profanity_nh"} <= kinds
        assert "profanity_h" not in kinds


def test_at_chance_by_the_auc_its_interval_and_kind_of_test() -> None:
    figures = {
        "low": {"auc": 0.58, "auc_ci95": [0.56, 0.6], "functionalities": {}},
        "wide": {"auc": 0.75, "auc_ci95": [0.4, 0.95], "functionalities": {}},
        "good": {"auc": 0.75, "auc_ci95": [0.7, 0.8], "functionalities": {"a": 0.9, "b": 0.2, "c": None}},
        "one class": {"auc": None, "auc_ci95": None, "functionalities": {}},
    }
    assert at_chance(figures) == [
        {"suite": "low", "functionality": None, "auc": 0.58},
        {"suite": "wide", "functionality": None, "auc": 0.75},
        {"suite": "good", "functionality": "b", "auc": 0.2},
    ]
    assert at_chance({}) == []


def test_trained_judges_are_found_with_their_own_figures(judge: Path) -> None:
    (judge.parent / "classifier").mkdir()
    (judge.parent / "classifier" / "config.json").write_text('{"architectures": ["BertForSequenceClassification"]}')
    (judge.parent / "language_model").mkdir()
    (judge.parent / "language_model" / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (judge.parent / "pairs").mkdir()
    (judge.parent / "pairs" / "judge.json").write_text(json.dumps(RECORD | {"kind": "pairs"}))
    (judge.parent / "broken").mkdir()
    (judge.parent / "broken" / "config.json").write_text("{")
    found = named(list_judges(JudgeListSettings(dir=judge.parent)))
    assert [name for name in found if name.startswith(str(judge.parent))] == [
        str(judge.parent / "classifier"),
        str(judge),
    ]
    assert "toxicity, hate" in found[str(judge)]["what"]
    assert found[str(judge)]["usable"]
    assert found[str(judge)]["figures"] == {}
    assert "BertForSequenceClassification" in found[str(judge.parent / "classifier")]["what"]
    assert str(judge) in named(list_judges(JudgeListSettings(dir=judge)))


def test_mistakes(tmp_path: Path, judge: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"judge 'lexcial' is not listed: did you mean 'lexical'"):
        list_judges(JudgeListSettings(names=["lexcial"]))
    with pytest.raises(ConfigError, match="is no folder"):
        list_judges(JudgeListSettings(dir=tmp_path / "none"))
    (judge / "judge.json").write_text("{")
    with pytest.raises(ScorerError, match=r"judge\.json is damaged"):
        list_judges(JudgeListSettings(dir=judge))
    (judge / "judge.json").write_text("[1]")
    with pytest.raises(ScorerError, match=r"judge\.json holds a list: expected an object"):
        list_judges(JudgeListSettings(dir=judge))
    monkeypatch.delenv("REWARDLM_DATA", raising=False)
    with pytest.raises(DataError, match="no suite to measure on"):
        list_judges(JudgeListSettings(names=["lexical"], measure=True))


def test_measuring_writes_figures_beside_those_of_others(own: Path, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    kept = {"figures": {"hatecheck": {"auc": 0.9}}, "environment": {}, "speed": None}
    file.write_text(json.dumps({"judges": {"other": kept, "lexical": kept}}))
    settings = JudgeListSettings(names=["lexical"], measure=True, suite=[str(own)])
    (judge,) = list_judges(settings, figures_file=file)
    written = json.loads(file.read_text())["judges"]
    assert written["other"] == kept
    assert set(written["lexical"]["figures"]) == {"hatecheck", "own"}
    assert json.loads(json.dumps(judge["figures"]["own"])) == written["lexical"]["figures"]["own"]
    assert judge["figures"]["own"]["auc"] == 1, "every insult is on the list, no friend is"
    assert "date" in written["lexical"]["environment"]


def test_by_default_the_suites_that_are_here_are_measured(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    (folder / "jigsaw_bias").mkdir(parents=True)
    (folder / "jigsaw_bias" / "toxicity_nonfuzzed_testset.csv").write_text(
        "rev_id,comment,toxic\n1,you idiot,True\n2,thank you,False\n"
    )
    monkeypatch.setenv("REWARDLM_DATA", str(folder))
    assert list(measure_figures(["lexical"], JudgeListSettings())["lexical"]["figures"]) == ["jigsaw"]


def test_a_card_gets_figures_and_keeps_what_it_had(judge: Path, own: Path) -> None:
    pytest.importorskip("rewardlm.scoring.encoder")
    from rewardlm.judges.evaluate import evaluate
    from rewardlm.judges.settings import JudgeEvaluateSettings

    found = evaluate(JudgeEvaluateSettings(judge=["lexical"], suite=[str(own)], speed=False, n_resamples=100))
    (judge / "judge.json").write_text(json.dumps(RECORD | {"metrics": {"rtp": figures_of(found["results"][0])}}))
    add_to_card(judge, {"own": figures_of(found["results"][0])})
    record = json.loads((judge / "judge.json").read_text())
    assert set(record["metrics"]) == {"rtp", "own"}
    assert {key: record[key] for key in RECORD} == RECORD
    card = (judge / "README.md").read_text()
    assert "| own | toxicity | 40 | 1.000 |" in card
    assert named(list_judges(JudgeListSettings(dir=judge)))[str(judge)]["figures"] == record["metrics"]
    assert card_folder(str(judge)) == card_folder(f"{judge}#hate") == judge
    with pytest.raises(ConfigError, match="only a judge made by judge train has a card"):
        card_folder("lexical")
