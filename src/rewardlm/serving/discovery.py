"""The discovery document, by which Google's clients learn what ``comments`` there are and where to send them."""

from __future__ import annotations

from typing import Any

NAME, VERSION = "commentanalyzer", "v1alpha1"
_TYPES = ["TEXT_TYPE_UNSPECIFIED", "PLAIN_TEXT", "HTML"]
_SCORE_TYPES = ["SCORE_TYPE_UNSPECIFIED", "PROBABILITY", "STD_DEV_SCORE", "PERCENTILE", "RAW"]
_TEXT: dict[str, Any] = {"type": "string"}
_WHOLE: dict[str, Any] = {"type": "integer", "format": "int32"}
_NUMBER: dict[str, Any] = {"type": "number", "format": "float"}
_FLAG: dict[str, Any] = {"type": "boolean"}


def document(root: str) -> dict[str, Any]:
    """The document of a server whose address is ``root``, which ends with a slash."""
    return {
        "kind": "discovery#restDescription",
        "discoveryVersion": "v1",
        "id": f"{NAME}:{VERSION}",
        "name": NAME,
        "version": VERSION,
        "title": "Comments by a judge of RewardLM",
        "description": "Perspective's API, answered by a judge on this machine.",
        "canonicalName": "Comment Analyzer",
        "protocol": "rest",
        "rootUrl": root,
        "servicePath": "",
        "baseUrl": root,
        "batchPath": "batch",
        "ownerName": "RewardLM",
        "parameters": _PARAMETERS,
        "schemas": {name: {"id": name, "type": "object", "properties": found} for name, found in _SCHEMAS.items()},
        "resources": {
            "comments": {
                "methods": {
                    "analyze": _method("analyze", "AnalyzeComment", "Scores of the attributes that are asked for."),
                    "suggestscore": _method(
                        "suggestscore", "SuggestCommentScore", "A score that should have come. It is not kept."
                    ),
                }
            }
        },
    }


def directory(root: str) -> dict[str, Any]:
    """The list of the one API that there is."""
    url = f"{root}$discovery/rest?version={VERSION}"
    item = {
        "kind": "discovery#directoryItem",
        "id": f"{NAME}:{VERSION}",
        "name": NAME,
        "version": VERSION,
        "discoveryRestUrl": url,
        "preferred": True,
    }
    return {"kind": "discovery#directoryList", "discoveryVersion": "v1", "items": [item]}


def _method(name: str, kind: str, description: str) -> dict[str, Any]:
    path = f"{VERSION}/comments:{name}"
    return {
        "id": f"{NAME}.comments.{name}",
        "httpMethod": "POST",
        "path": path,
        "flatPath": path,
        "parameterOrder": [],
        "parameters": {},
        "description": description,
        "request": {"$ref": f"{kind}Request"},
        "response": {"$ref": f"{kind}Response"},
    }


def _of(name: str) -> dict[str, Any]:
    return {"$ref": name}


def _list_of(what: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": what}


def _map_to(name: str) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": _of(name)}


_PARAMETERS: dict[str, Any] = {
    name: {"type": "string", "location": "query", "description": description}
    for name, description in {
        "key": "The key, where the server asks for one.",
        "judge": "The judge, if not the first one.",
        "access_token": "Not read here.",
        "alt": "Answers are always JSON.",
        "callback": "Not read here.",
        "fields": "Answers are always whole.",
        "oauth_token": "Not read here.",
        "quotaUser": "Not read here.",
        "uploadType": "Not read here.",
        "upload_protocol": "Not read here.",
        "$.xgafv": "Not read here.",
    }.items()
} | {"prettyPrint": {"type": "boolean", "location": "query", "description": "Not read here.", "default": "true"}}
_SCHEMAS: dict[str, dict[str, Any]] = {
    "TextEntry": {"text": _TEXT, "type": {"type": "string", "enum": _TYPES}},
    "ArticleAndParentComment": {"article": _of("TextEntry"), "parentComment": _of("TextEntry")},
    "Context": {
        "entries": _list_of(_of("TextEntry")),
        "articleAndParentComment": _of("ArticleAndParentComment"),
    },
    "AttributeParameters": {"scoreType": {"type": "string", "enum": _SCORE_TYPES}, "scoreThreshold": _NUMBER},
    "Score": {"value": _NUMBER, "type": {"type": "string", "enum": _SCORE_TYPES}},
    "SpanScore": {"begin": _WHOLE, "end": _WHOLE, "score": _of("Score")},
    "AttributeScores": {"summaryScore": _of("Score"), "spanScores": _list_of(_of("SpanScore"))},
    "AnalyzeCommentRequest": {
        "comment": _of("TextEntry"),
        "context": _of("Context"),
        "requestedAttributes": _map_to("AttributeParameters"),
        "languages": _list_of(_TEXT),
        "doNotStore": _FLAG,
        "clientToken": _TEXT,
        "sessionId": _TEXT,
        "communityId": _TEXT,
        "spanAnnotations": _FLAG,
        "judge": _TEXT,
    },
    "AnalyzeCommentResponse": {
        "attributeScores": _map_to("AttributeScores"),
        "languages": _list_of(_TEXT),
        "detectedLanguages": _list_of(_TEXT),
        "clientToken": _TEXT,
    },
    "SuggestCommentScoreRequest": {
        "comment": _of("TextEntry"),
        "context": _of("Context"),
        "attributeScores": _map_to("AttributeScores"),
        "languages": _list_of(_TEXT),
        "clientToken": _TEXT,
        "sessionId": _TEXT,
        "communityId": _TEXT,
    },
    "SuggestCommentScoreResponse": {
        "clientToken": _TEXT,
        "detectedLanguages": _list_of(_TEXT),
        "requestedLanguages": _list_of(_TEXT),
    },
}
