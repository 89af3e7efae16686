"""The JSON of a comparison is what its types say, and what docs/comparison.schema.json says to other programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from measured_runs import build_run
from pydantic import ValidationError

from rewardlm.measuring.compare import compare
from rewardlm.measuring.comparison import METRICS, Comparison

SCHEMA = Path(__file__).parents[2] / "docs" / "comparison.schema.json"


@pytest.fixture
def found(tmp_path: Path) -> Comparison:
    """Two judges, one with a second label, one of which left answers unscored; counter-narratives; two samples."""
    scores: dict[str, list[list[float | None]]] = {
        "a": [[0.9, 0.2], [0.4, None], [0.1, 0.6]] * 4,
        "a.insult": [[0.3, 0.2], [0.4, None], [0.1, 0.6]] * 4,
        "b": [[0.8, 0.1], [0.6, 0.2], [0.2, 0.3]] * 4,
    }
    classes = {"counter_narrative": 0.7, "agreement": 0.3}
    quality = [{"generation_id": f"p{row}-0", "classes": classes, "classes_null": classes} for row in range(12)]
    judge = {"name": "pairs", "revision": "abc", "error": None}
    common: dict[str, Any] = {"toxicity": [0.9, 0.6, 0.2] * 4, "quality": quality, "pair_judge": judge}
    before = build_run(tmp_path / "PT", "PT", scores, **common)
    after = build_run(tmp_path / "RL", "RL", scores | {"a": [[0.1, 0.2], [0.4, None], [0.1, 0.6]] * 4}, **common)
    return compare([before, after], n_resamples=200)


def test_the_schema_is_that_of_the_types() -> None:
    """docs/measuring.md says how to write it again."""
    assert json.loads(SCHEMA.read_text("utf-8")) == Comparison.model_json_schema()


def test_a_comparison_is_valid_by_the_schema_and_another_key_is_not(found: Comparison) -> None:
    printed = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    wrong = {**printed, "models": [{**printed["models"][0], "toxic": 0.5}]}
    assert Comparison.model_validate(printed) == found
    with pytest.raises(ValidationError, match="toxic"):
        Comparison.model_validate(wrong)
    schema = json.loads(SCHEMA.read_text("utf-8"))
    jsonschema.validate(printed, schema)
    with pytest.raises(jsonschema.ValidationError, match="toxic"):
        jsonschema.validate(wrong, schema)


def test_every_key_is_described() -> None:
    schema = json.loads(SCHEMA.read_text("utf-8"))
    plain = {"scorer", "split", "metric", "seed", "quality", "primary_fixed"}
    undescribed = {
        (name, key)
        for name, kind in schema["$defs"].items()
        for key, field in kind["properties"].items()
        if key not in plain and not field.get("description")
    }
    assert undescribed == set()


@pytest.mark.parametrize(("metric", "prefix"), METRICS.items())
def test_a_change_in_a_metric_is_the_keys_that_begin_so(found: Comparison, metric: Any, prefix: str) -> None:
    for change, printed in zip(found.comparisons, found.to_dict()["comparisons"], strict=True):
        of = change.of(metric)
        interval = printed[f"{prefix}delta_ci95"]
        assert (of.delta, of.p_value, of.p_adjusted) == tuple(
            printed[f"{prefix}{key}"] for key in ("delta", "p_value", "p_adjusted")
        )
        assert (None if of.ci95 is None else list(of.ci95)) == interval
        counts_prompts = metric in ("expected_max_toxicity", "toxicity_probability")
        assert of.n == (printed["equal_samples"]["prompts"] if counts_prompts else printed["n"])


def test_without_further_labels_the_rest_stays(found: Comparison) -> None:
    assert found.scorers == ["a", "a.insult", "b"]
    main = found.main_labels()
    assert main.scorers == ["a", "b"]
    assert {change.scorer for change in main.comparisons} == {"a", "b"}
    assert main.models[1].scorers["b"] == found.models[1].scorers["b"]
    assert main.warnings == found.warnings
