"""``comments:analyze`` and ``comments:suggestscore``: what is answered, and what is refused in Google's words."""

from __future__ import annotations

from typing import Any

import pytest
from serving_server import Letters, ThreadServer, analyze

ANALYZE = "/v1alpha1/comments:analyze"
SUGGEST = "/v1alpha1/comments:suggestscore"
ERROR = "type.googleapis.com/google.commentanalyzer.v1alpha1.Error"


def test_an_answer_has_every_field_in_googles_form(server: ThreadServer) -> None:
    found = server.ask(ANALYZE, analyze("xxab", "TOXICITY", "INSULT", languages=["en"], clientToken="a token"))
    assert found.status == 200
    assert found.headers["content-type"] == "application/json"
    assert found.body == {
        "attributeScores": {
            "TOXICITY": {
                "spanScores": [{"begin": 0, "end": 4, "score": {"value": 0.5, "type": "PROBABILITY"}}],
                "summaryScore": {"value": 0.5, "type": "PROBABILITY"},
            },
            "INSULT": {
                "spanScores": [{"begin": 0, "end": 4, "score": {"value": 0.25, "type": "PROBABILITY"}}],
                "summaryScore": {"value": 0.25, "type": "PROBABILITY"},
            },
        },
        "languages": ["en"],
        "detectedLanguages": ["und"],
        "clientToken": "a token",
    }


def test_every_answer_names_the_judge_its_version_and_its_weights(server: ThreadServer) -> None:
    headers = server.ask(ANALYZE, analyze("x")).headers
    assert (headers["x-judge"], headers["x-judge-version"], headers["x-judge-weights"]) == (
        "letters", "v-letters", "sha256:00",
    )  # fmt: skip
    assert headers["cache-control"] == "no-store"


def test_sentences_are_scored_one_by_one_where_that_is_asked(server: ThreadServer, letters: Letters) -> None:
    text = "😀 xx. abcd!"
    found = server.ask(ANALYZE, analyze(text, spanAnnotations=True)).body["attributeScores"]["TOXICITY"]
    units = text.encode("utf-16-le")
    parts = [units[2 * span["begin"] : 2 * span["end"]].decode("utf-16-le") for span in found["spanScores"]]
    assert parts == ["😀 xx.", "abcd!"]
    assert [span["score"]["value"] for span in found["spanScores"]] == pytest.approx([2 / 5, 0])
    assert found["summaryScore"]["value"] == pytest.approx(2 / len(text))
    assert letters.batches == [[text, "😀 xx.", "abcd!"]]


def test_a_comment_of_one_sentence_is_scored_once(server: ThreadServer, letters: Letters) -> None:
    server.ask(ANALYZE, analyze("one xx", spanAnnotations=True))
    assert letters.batches == [["one xx"]]


@pytest.mark.parametrize("threshold", [0, 0.5])
def test_a_threshold_that_is_reached_changes_nothing(server: ThreadServer, threshold: float) -> None:
    request = analyze("xa")
    request["requestedAttributes"]["TOXICITY"]["scoreThreshold"] = threshold
    assert server.ask(ANALYZE, request).body["attributeScores"]["TOXICITY"]["summaryScore"]["value"] == 0.5


def test_scores_below_a_threshold_are_left_out_each_for_itself(server: ThreadServer) -> None:
    request = analyze("xxx. abcdefghij", "TOXICITY", "INSULT", spanAnnotations=True)
    request["requestedAttributes"] = {"TOXICITY": {"scoreThreshold": 0.7}, "INSULT": {"scoreThreshold": 0.99}}
    found = server.ask(ANALYZE, request).body["attributeScores"]
    assert set(found) == {"TOXICITY"}
    assert "summaryScore" not in found["TOXICITY"]
    assert [span["end"] for span in found["TOXICITY"]["spanScores"]] == [4]


@pytest.mark.parametrize(
    "more",
    [
        {"doNotStore": True},
        {"doNotStore": False, "sessionId": "s", "communityId": "c"},
        {"context": {"entries": [{"text": "before", "type": "PLAIN_TEXT"}]}},
        {"context": {"articleAndParentComment": {"article": {"text": "a"}, "parentComment": {"text": "p"}}}},
        {"languages": ["fr", "en-GB"]},
        {"languages": []},
        {"clientToken": None, "context": None},
    ],
)
def test_what_changes_no_score_is_taken(server: ThreadServer, more: dict[str, Any]) -> None:
    found = server.ask(ANALYZE, analyze("xa", **more))
    assert found.status == 200, found.body
    assert found.body["attributeScores"]["TOXICITY"]["summaryScore"]["value"] == 0.5
    assert "clientToken" not in found.body


def test_snake_case_is_read_as_google_reads_it(server: ThreadServer) -> None:
    body = {
        "comment": {"text": "x", "type": "PLAIN_TEXT"},
        "requested_attributes": {"TOXICITY": {"score_type": "PROBABILITY"}},
    }
    assert server.ask(ANALYZE, body).body["attributeScores"]["TOXICITY"]["summaryScore"]["value"] == 1


@pytest.mark.parametrize(
    ("body", "error_type", "message"),
    [
        ({}, "COMMENT_EMPTY", "Comment must be non-empty."),
        (analyze(""), "COMMENT_EMPTY", "Comment must be non-empty."),
        (analyze(" \n\u200b"), "COMMENT_EMPTY", "Comment must be non-empty."),
        (analyze("x" * 20_481), "COMMENT_TOO_LONG", "Comment text too long."),
        (analyze("ü" * 10_241), "COMMENT_TOO_LONG", "Comment text too long."),
        ({"comment": {"text": "x"}}, "NO_REQUESTED_ATTRIBUTES", "Missing requested_attributes"),
        ({"comment": {"text": "x"}, "requestedAttributes": {}}, "NO_REQUESTED_ATTRIBUTES", "Missing requested_attrib"),
        (analyze("x", "FLIRTATION"), "INVALID_REQUEST", "Unknown requested attribute: FLIRTATION"),
        (analyze("x", "TOXICITY", "THREAT"), "INVALID_REQUEST", "Unknown requested attribute: THREAT"),
        (analyze("x", "TOXICITY@6"), "INVALID_REQUEST", "Unknown requested attribute: TOXICITY@6"),
        (analyze("x", "toxicity"), "INVALID_REQUEST", "Unknown requested attribute: toxicity"),
        (
            {"comment": {"text": "x"}, "requestedAttributes": {"TOXICITY": {"scoreType": "RAW"}}},
            "INVALID_REQUEST",
            "Requested score type RAW is not supported by attribute TOXICITY",
        ),
        (
            {**analyze("x"), "comment": {"text": "<b>x</b>", "type": "HTML"}},
            "INVALID_REQUEST",
            "Currently, only 'PLAIN_TEXT' comments are supported",
        ),
        (
            analyze("x", context={"entries": [{"text": "a"}], "articleAndParentComment": {"article": {"text": "b"}}}),
            "INVALID_REQUEST",
            "Context can have either entries or article_and_parent_comment",
        ),
        (
            analyze("x", languages=["fr"]),
            "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE",
            "Attribute TOXICITY does not support request languages: fr",
        ),
        (
            analyze("Это совсем другой язык"),
            "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE",
            "Attribute TOXICITY does not support request languages: und-Cyrl",
        ),
        (
            analyze("これは日本語です"),
            "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE",
            "Attribute TOXICITY does not support request languages: und-Jpan",
        ),
        (analyze("x", spanAnnotation=True), "INVALID_REQUEST", 'Unknown name "spanAnnotation": Cannot find field.'),
    ],
)
def test_what_google_refuses_is_refused_in_its_words(
    server: ThreadServer, letters: Letters, body: dict[str, Any], error_type: str, message: str
) -> None:
    found = server.ask(ANALYZE, body)
    assert found.status == 400
    error = found.body["error"]
    assert (error["code"], error["status"]) == (400, "INVALID_ARGUMENT")
    assert message in error["message"]
    assert error["details"][0]["@type"] == ERROR
    assert error["details"][0]["errorType"] == error_type
    assert letters.batches == []


def test_a_language_that_nobody_reads_is_named_as_google_names_it(server: ThreadServer) -> None:
    (detail,) = server.ask(ANALYZE, analyze("Γειά σου", "INSULT")).body["error"]["details"]
    assert detail["languageNotSupportedByAttributeError"] == {"detectedLanguages": ["und-Grek"], "attribute": "INSULT"}


@pytest.mark.parametrize("text", ["Ça va très bien, señor Müller", "𝓎𝑜𝓊 𝓯𝓸𝓸𝓵", "😀😀😀", "1234 !!", "okay then, он"])
def test_a_text_in_latin_letters_or_none_is_scored(server: ThreadServer, text: str) -> None:
    assert server.ask(ANALYZE, analyze(text)).status == 200


def test_20480_bytes_are_read(server: ThreadServer) -> None:
    assert server.ask(ANALYZE, analyze("ü" * 10_240)).status == 200


def test_a_text_that_the_judge_fails_at_has_an_error_and_no_score(server: ThreadServer) -> None:
    failed = server.ask(ANALYZE, analyze("a [fail] x"))
    assert (failed.status, failed.body["error"]["status"]) == (500, "INTERNAL")
    assert "attributeScores" not in failed.body
    declined = server.ask(ANALYZE, analyze("a [decline] x"))
    assert (declined.status, declined.body["error"]["message"]) == (400, "The comment could not be scored: declined")
    # A sentence without a score is no harmless one either.
    assert server.ask(ANALYZE, analyze("Good. Bad [decline].", spanAnnotations=True)).status == 400


def test_too_many_sentences_are_refused_before_they_cost_anything(server: ThreadServer, letters: Letters) -> None:
    found = server.ask(ANALYZE, analyze("a. " * 600, spanAnnotations=True))
    assert found.status == 400
    assert "600 sentences: expected fewer than 512" in found.body["error"]["message"]
    assert letters.batches == []


def test_attributes_that_a_user_declares_are_served_and_listed(serve: Any) -> None:
    server = serve(Letters(labels=("hate", "obscene")), attributes={"TOXICITY": "hate", "RUDENESS": "obscene"})
    found = server.ask(ANALYZE, analyze("xa", "TOXICITY", "RUDENESS", "PROFANITY", "OBSCENE")).body["attributeScores"]
    values = {name: one["summaryScore"]["value"] for name, one in found.items()}
    assert values == {"TOXICITY": 0.5, "RUDENESS": 0.25, "PROFANITY": 0.25, "OBSCENE": 0.25}
    assert server.ask("/judges").body["judges"][0]["attributes"]["TOXICITY"] == "hate"
    # Hate is no insult, whatever anybody would like.
    assert server.ask(ANALYZE, analyze("x", "INSULT")).status == 400


def test_a_judge_is_chosen_in_the_body_or_the_address(serve: Any) -> None:
    server = serve(Letters("first"), Letters("second"), aliases={"old-name": "second"})
    for path, more, expected in [
        (ANALYZE, {}, "first"),
        (ANALYZE, {"judge": "second"}, "second"),
        (ANALYZE, {"model": "second"}, "second"),
        (f"{ANALYZE}?judge=second", {}, "second"),
        (f"{ANALYZE}?judge=old-name", {"judge": "second"}, "second"),
    ]:
        assert server.ask(path, analyze("x", **more)).headers["x-judge"] == expected
    unknown = server.ask(ANALYZE, analyze("x", judge="third"))
    assert (unknown.status, unknown.body["error"]["status"]) == (404, "NOT_FOUND")
    assert "expected one of first, second" in unknown.body["error"]["message"]
    assert server.ask(f"{ANALYZE}?judge=first", analyze("x", judge="second")).status == 400


def test_a_suggestion_is_taken_and_its_token_comes_back(server: ThreadServer, letters: Letters) -> None:
    scores = {"TOXICITY": {"summaryScore": {"value": 0}, "spanScores": [{"begin": 0, "end": 1, "score": {"value": 1}}]}}
    body = {
        "comment": {"text": "x"},
        "attributeScores": scores,
        "communityId": "c",
        "clientToken": "t",
        "languages": ["en"],
    }
    found = server.ask(SUGGEST, body)
    assert found.status == 200
    assert found.body == {"clientToken": "t", "detectedLanguages": ["und"], "requestedLanguages": ["en"]}
    assert letters.batches == []


@pytest.mark.parametrize(
    "body",
    [
        {"comment": {"text": "x"}},
        {"comment": {"text": ""}, "attributeScores": {"TOXICITY": {"summaryScore": {"value": 0}}}},
        {"comment": {"text": "x"}, "attributeScores": {"TOXICITY": {}}},
        {"comment": {"text": "x"}, "attributeScores": {"TOXICITY": {"summaryScore": {"value": 2}}}},
        {"comment": {"text": "x"}, "attributeScores": {"TOXICITY": {"spanScores": [{"score": {"value": 1}}]}}},
    ],
)
def test_a_suggestion_that_makes_no_sense_is_refused(server: ThreadServer, body: dict[str, Any]) -> None:
    found = server.ask(SUGGEST, body)
    assert (found.status, found.body["error"]["status"]) == (400, "INVALID_ARGUMENT")


@pytest.mark.parametrize(
    "path", ["/$discovery/rest?version=v1alpha1", "/discovery/v1/apis/commentanalyzer/v1alpha1/rest"]
)
def test_the_discovery_document_leads_back_to_the_address_that_was_asked(server: ThreadServer, path: str) -> None:
    found = server.ask(path, headers={"Host": f"localhost:{server.port}"}).body
    assert found["rootUrl"] == f"http://localhost:{server.port}/"
    # A proxy on this machine that has the encryption says so.
    behind = {"Host": "localhost", "X-Forwarded-Proto": "https"}
    assert server.ask(path, headers=behind).body["rootUrl"] == "https://localhost/"
    methods = found["resources"]["comments"]["methods"]
    assert {name: method["path"] for name, method in methods.items()} == {
        "analyze": "v1alpha1/comments:analyze", "suggestscore": "v1alpha1/comments:suggestscore",
    }  # fmt: skip
    # Every type that is referred to is there.
    named = {part.split('"')[0] for part in str(found).replace("'", '"').split('"$ref": "')[1:]}
    assert named <= found["schemas"].keys()
    assert server.ask("/$discovery/rest?version=v2").status == 404
    assert server.ask("/discovery/v1/apis").body["items"][0]["name"] == "commentanalyzer"
