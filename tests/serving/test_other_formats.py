"""``/v1/moderations``, ``/classify``, ``/score``, and what a server says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from serving_server import Letters, ThreadServer

from rewardlm.errors import RewardLMError, RunError
from rewardlm.judges.settings import JudgeServeSettings
from rewardlm.scoring.ensemble import Ensemble, Member
from rewardlm.scoring.thresholds import JudgeThresholds, MatchedThreshold, Thresholds, write_thresholds
from rewardlm.scoring.versions import JudgeVersion
from rewardlm.serving.served import as_served


def test_moderations_have_openais_form_and_the_judges_labels(server: ThreadServer) -> None:
    found = server.ask("/v1/moderations", {"input": ["xxxa", "abcd"]})
    assert found.status == 200
    assert found.body["id"].startswith("modr-")
    assert found.body["model"] == "letters"
    assert found.body["judge"] == {"judge": "letters", "version": "v-letters", "weights": "sha256:00"}
    first, second = found.body["results"]
    assert first == {
        "flagged": True,
        "categories": {"toxicity": True, "insult": False, "hate": False},
        "category_scores": pytest.approx({"toxicity": 0.75, "insult": 0.375, "hate": 0.25}),
        "category_applied_input_types": {"toxicity": ["text"], "insult": ["text"], "hate": ["text"]},
    }
    assert second["flagged"] is False
    assert found.headers["x-judge"] == "letters"


def test_thresholds_decide_what_is_flagged(serve: Any) -> None:
    server = serve(Letters(), threshold=0.5, label_thresholds={"insult": 0.2})
    (one,) = server.ask("/v1/moderations", {"input": "xxab"}).body["results"]
    # Its toxicity is 0.5: as in measure, a score at the threshold is not above it.
    assert one["categories"] == {"toxicity": False, "insult": True, "hate": False}
    assert one["flagged"]


def test_a_moved_threshold_is_that_of_the_judge_it_was_made_for(serve: Any, tmp_path: Path) -> None:
    """thresholds.yaml moves the main label's threshold, of the judge that it names and no other."""
    moved = JudgeThresholds(label="toxicity", revision="letters 1", same_share=MatchedThreshold(value=0.7))
    write_thresholds(tmp_path / "thresholds.yaml", Thresholds(judges={"letters": moved}))
    server = serve(
        Letters(), Letters("others"), thresholds=tmp_path / "thresholds.yaml", label_thresholds={"hate": 0.1}
    )
    flagged = {}
    for judge in ("letters", "others"):
        body = server.ask("/v1/moderations", {"input": ["xxxa", "xxxaa"], "model": judge}).body
        flagged[judge] = [one["categories"]["toxicity"] for one in body["results"]]
        # Its insult, half of its toxicity, is above no threshold; its hate, a third, is above its own.
        assert all(one["flagged"] for one in body["results"])
    assert flagged == {"letters": [True, False], "others": [True, True]}
    first, second = server.ask("/judges").body["judges"]
    assert first["thresholds"] == {"toxicity": 0.7, "insult": 0.5, "hate": 0.1}
    assert second["thresholds"] == {"toxicity": 0.5, "insult": 0.5, "hate": 0.1}


def test_a_moved_threshold_alone_decides_what_is_flagged(serve: Any, tmp_path: Path) -> None:
    """It was made to flag a share of texts by the main label: other labels at 0.5 would flag more."""
    moved = JudgeThresholds(label="toxicity", revision="letters 1", same_share=MatchedThreshold(value=0.9))
    write_thresholds(tmp_path / "thresholds.yaml", Thresholds(judges={"letters": moved}))
    judge = Letters()
    judge.values = lambda text: {"toxicity": 0.8, "insult": 0.8, "hate": 0.1}  # type: ignore[method-assign]
    server = serve(judge, thresholds=tmp_path / "thresholds.yaml")
    (one,) = server.ask("/v1/moderations", {"input": "x"}).body["results"]
    assert one["categories"] == {"toxicity": False, "insult": True, "hate": False}
    assert not one["flagged"]


def test_an_ensembles_members_decide_nothing(serve: Any) -> None:
    members = {0.9: Letters("high"), 0.2: Letters("low")}
    for value, member in members.items():
        member.values = lambda _, value=value: {"toxicity": value}  # type: ignore[method-assign]
        member.labels = ("toxicity",)
    mean = Ensemble([Member(judge.name, judge, "toxicity") for judge in members.values()], "mean", name="mean")
    (one,) = serve(mean, threshold=0.6).ask("/v1/moderations", {"input": "x"}).body["results"]
    assert one["category_scores"]["toxicity"] == pytest.approx(0.55)
    assert not one["flagged"]


@pytest.mark.parametrize(
    ("moved", "more", "said"),
    [
        ({"version": "other"}, {}, "made for its version other, here it is 1"),
        ({}, {"label_thresholds": {"toxicity": 0.2}}, "both set a threshold of letters: give one"),
    ],
)
def test_a_threshold_that_would_be_another_judges_or_a_second_one_is_refused(
    tmp_path: Path, moved: dict[str, str], more: dict[str, Any], said: str
) -> None:
    found = JudgeThresholds(label="toxicity", same_share=MatchedThreshold(value=0.7), **moved)
    write_thresholds(tmp_path / "thresholds.yaml", Thresholds(judges={"letters": found}))
    settings = JudgeServeSettings(judge=["letters"], thresholds=tmp_path / "thresholds.yaml", **more)
    with pytest.raises(RewardLMError, match=said):
        as_served(Letters(), JudgeVersion("letters", "1", None), settings)


def test_a_threshold_for_other_weights_is_refused(tmp_path: Path) -> None:
    moved = JudgeThresholds(label="toxicity", revision="letters 2", same_share=MatchedThreshold(value=0.7))
    write_thresholds(tmp_path / "thresholds.yaml", Thresholds(judges={"letters": moved}))
    settings = JudgeServeSettings(judge=["letters"], thresholds=tmp_path / "thresholds.yaml")
    with pytest.raises(RunError, match="made for other weights"):
        as_served(Letters(), JudgeVersion("letters", "1", None), settings)


@pytest.mark.parametrize("given", ["x", ["x"], [{"type": "text", "text": "x"}]])
def test_an_input_is_a_text_or_a_list(server: ThreadServer, given: Any) -> None:
    (one,) = server.ask("/v1/moderations", {"input": given}).body["results"]
    assert one["category_scores"]["toxicity"] == 1


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"input": []},
        {"input": None},
        {"input": 3},
        {"input": ["x", 3]},
        {"input": ""},
        {"input": ["x", "  "]},
        {"input": [{"type": "image_url", "image_url": {"url": "http://x"}}]},
        {"input": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"input": "x", "nonsense": 1},
        {"input": "x", "model": 3},
        {"input": ["x"] * 513},
        {"input": "x" * 100_001},
        {"input": "\ud800"},
    ],
    ids=lambda body: str(body)[:40],
)
def test_a_wrong_input_is_refused_as_openai_refuses_it(server: ThreadServer, body: Any) -> None:
    found = server.ask("/v1/moderations", body)
    assert found.status == 400
    assert set(found.body["error"]) == {"message", "type", "param", "code"}
    assert found.body["error"]["type"] == "invalid_request_error"


def test_a_text_without_a_score_is_an_error_of_the_whole_request(server: ThreadServer) -> None:
    """The format has no place for a missing result, and a made-up one would read as harmless."""
    failed = server.ask("/v1/moderations", {"input": ["fine", "[fail]"]})
    assert (failed.status, failed.body["error"]["type"]) == (500, "server_error")
    assert "input[1] could not be scored" in failed.body["error"]["message"]
    assert server.ask("/v1/moderations", {"input": ["[decline]"]}).status == 400
    assert server.ask("/classify", {"inputs": ["fine", "[fail]"]}).status == 500


def test_classify_ranks_labels_for_each_text(server: ThreadServer) -> None:
    assert server.ask("/classify", {"inputs": "xa"}).body == [
        [
            {"label": "toxicity", "score": 0.5},
            {"label": "insult", "score": 0.25},
            {"label": "hate", "score": pytest.approx(1 / 6)},
        ]
    ]
    found = server.ask("/classify", {"inputs": ["xa", "aa"], "parameters": {"top_k": 1}}).body
    assert found == [[{"label": "toxicity", "score": 0.5}], [{"label": "toxicity", "score": 0.0}]]


@pytest.mark.parametrize(
    "body", [{}, {"inputs": 3}, {"inputs": []}, {"inputs": "x", "parameters": {"top_k": 0}}, {"inputs": "x", "a": 1}]
)
def test_a_wrong_request_to_classify_has_hugging_faces_error(server: ThreadServer, body: Any) -> None:
    found = server.ask("/classify", body)
    assert found.status == 400
    assert found.body["error_type"] == "Validation"
    assert isinstance(found.body["error"], str)


def test_score_gives_values_and_says_why_one_is_missing(server: ThreadServer) -> None:
    found = server.ask("/score", {"texts": ["xa", "", "[decline]", "[fail]", "aa"]})
    assert found.status == 200
    assert found.body["values"] == [0.5, None, None, None, 0.0]
    assert found.body["reasons"][:3] == [None, "empty text", "declined"]
    assert found.body["reasons"][3] == "the judge failed at it"
    assert found.body["scores"][1] == {}
    assert (found.body["judge"], found.body["version"], found.body["label"]) == ("letters", "v-letters", "toxicity")
    assert server.ask("/score", {"texts": ["xa"], "label": "insult"}).body["values"] == [0.25]
    assert server.ask("/score", {"texts": ["xa"], "label": "threat"}).status == 400


def test_a_model_that_is_not_served_is_not_found_in_each_format(server: ThreadServer) -> None:
    found = server.ask("/v1/moderations", {"input": "x", "model": "omni-moderation-latest"})
    assert (found.status, found.body["error"]["code"]) == (404, "model_not_found")
    assert server.ask("/score", {"texts": ["x"], "judge": "other"}).status == 404


def test_an_alias_serves_a_script_that_names_openais_model(serve: Any) -> None:
    server = serve(Letters("mine"), aliases={"omni-moderation-latest": "mine"})
    found = server.ask("/v1/moderations", {"input": "x", "model": "omni-moderation-latest"})
    assert found.body["model"] == "mine"


def test_what_a_server_says_of_itself(serve: Any) -> None:
    server = serve(Letters("first"), Letters("second", labels=("hate",)))
    assert server.ask("/healthz").body == {"status": "ok"}
    first, second = server.ask("/judges").body["judges"]
    assert (first["judge"], first["default"], first["version"]) == ("first", True, "v-first")
    assert first["attributes"] == {"TOXICITY": "toxicity", "INSULT": "insult"}
    assert second["attributes"] == {}


def test_metrics_count_what_happened_and_hold_no_text(server: ThreadServer) -> None:
    server.ask("/score", {"texts": ["secret x", "secret x", "[decline]"]})
    server.ask("/nowhere-secret")
    server.ask("/score", {})
    text = server.ask("/metrics").data.decode()
    assert 'rewardlm_requests_total{path="/score",status="200"} 1.0' in text
    assert 'rewardlm_requests_total{path="/score",status="400"} 1.0' in text
    assert 'rewardlm_requests_total{path="other",status="404"} 1.0' in text
    assert 'rewardlm_texts_total{judge="letters"} 3.0' in text
    assert 'rewardlm_unscored_texts_total{judge="letters"} 1.0' in text
    assert 'rewardlm_batch_texts_sum{judge="letters"} 2.0' in text  # equal texts are one
    assert 'rewardlm_request_seconds_count{path="/score"} 2.0' in text
    assert "rewardlm_queue_texts 0.0" in text
    assert "secret" not in text


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [("/nothing", "GET", 404), ("/score", "GET", 405), ("/healthz", "POST", 405), ("/v1/nothing", "POST", 404)],
)
def test_a_path_that_is_not_there_has_the_formats_error(
    server: ThreadServer, path: str, method: str, status: int
) -> None:
    found = server.ask(path, method=method)
    assert found.status == status
    assert "error" in found.body
