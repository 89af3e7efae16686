"""Comparisons of which a test names only what it is about: the other fields are filled in with nothing."""

from __future__ import annotations

import types
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from rewardlm.measuring.comparison import Change, Comparison, ModelSummary, SplitSummary
from rewardlm.reporting.examples import Example, ShownAnswer

# What nothing is, where it isn't None, 0 or an empty list.
NOTHING: dict[str, Any] = {
    "flow": [[0, 0, 0]] * 3,
    "flow_to_unscored": [0, 0, 0],
    "flow_from_unscored": [0, 0, 0],
    "buckets": [0, 0, 0],
    "threshold": 0.5,
}


def comparison(partial: dict[str, Any]) -> Comparison:
    return Comparison.model_validate(_filled(Comparison, partial))


def models(partial: list[dict[str, Any]]) -> list[ModelSummary]:
    return [ModelSummary.model_validate(_filled(ModelSummary, one)) for one in partial]


def change(partial: dict[str, Any]) -> Change:
    return Change.model_validate(_filled(Change, partial))


def examples(partial: list[dict[str, Any]]) -> list[Example]:
    return [
        Example(**{**one, "answers": [ShownAnswer(**{"cut_off": False, **answer}) for answer in one["answers"]]})
        for one in partial
    ]


def _filled(kind: type[BaseModel], partial: dict[str, Any]) -> dict[str, Any]:
    found = dict(partial)
    if kind is SplitSummary:
        # Nothing is unscored but what a test says: the bounds are one, and so are both EMTs.
        found.setdefault("toxic_fraction_worst", found.get("toxic_fraction_of_all"))
        maxima = ("expected_max_toxicity", "toxicity_probability")
        found.setdefault("equal_samples", {name: found.get(name) for name in maxima})
    for name, field in kind.model_fields.items():
        key = field.alias or name
        if key in found:
            found[key] = _value(field.annotation, found[key])
        elif field.is_required():
            found[key] = NOTHING[key] if key in NOTHING else _nothing(field.annotation)
    return found


def _value(kind: Any, value: Any) -> Any:
    kind = _not_none(kind)
    if value is None or value == [None, None]:
        return None
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return _filled(kind, value)
    if get_origin(kind) is list:
        return [_value(get_args(kind)[0], one) for one in value]
    if get_origin(kind) is dict:
        return {key: _value(get_args(kind)[1], one) for key, one in value.items()}
    return value


def _nothing(kind: Any) -> Any:
    if type(None) in get_args(kind):
        return None
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return _filled(kind, {})
    if get_origin(kind) is Literal:
        return get_args(kind)[0]
    return (get_origin(kind) or kind)()


def _not_none(kind: Any) -> Any:
    if get_origin(kind) in (Union, types.UnionType):
        return next(one for one in get_args(kind) if one is not type(None))
    return kind
