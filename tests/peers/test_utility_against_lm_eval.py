"""Utility against lm-evaluation-harness itself, on rows of our own: its wording, its log-probabilities, its accuracies.

Skipped where lm_eval isn't installed: ``make test-peers`` puts it beside the project, and README.md says how. What this
asks, tests/measuring/test_likelihood.py always asks plain loops.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewardlm.config import UtilitySettings
from rewardlm.data.utility import Item, as_written, load_utility

HUGGINGFACE = pytest.importorskip("lm_eval.models.huggingface", reason="lm_eval is not installed: see README.md")

import lm_eval  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.metrics import weighted_perplexity  # noqa: E402
from lm_eval.api.task import ConfigurableTask, MultipleChoiceTask  # noqa: E402
from lm_eval.tasks._yaml_loader import load_yaml  # noqa: E402
from lm_eval.tasks.hellaswag.utils import process_docs  # noqa: E402
from lm_eval.tasks.wikitext.preprocess_wikitext import process_results, wikitext_detokenizer  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from small_models import tiny_policy  # noqa: E402

from rewardlm.measuring.likelihood import Likelihood  # noqa: E402
from rewardlm.measuring.utility_scores import TaskScores, scores_of, summarise_utility  # noqa: E402
from rewardlm.steering.steered import Unsteered  # noqa: E402

SCENES: list[dict[str, Any]] = [
    {
        "ind": n,
        "activity_label": "Baking",
        "ctx_a": "[header] How to bake [title] A tray  lies there.",
        "ctx_b": "The WOMAN [step]",
        "endings": ["eats  it.", "[substeps] turns it over and over again, slowly", "sings", "[title] Leave."],
        "label": n,
    }
    for n in range(3)
] + [
    {
        "ind": n,
        "activity_label": "Town",
        "ctx_a": f"Two families met at bridge {n}.",
        "ctx_b": "they",
        "endings": ["could not agree.", "went home", "told a story about a river and a small town", "?"],
        "label": n % 4,
    }
    for n in range(9)
]
PAGE = (
    ' = The Bridge = \n \n The bridge , built in 1 @,@ 907 ( or 1908 ) , is " the longest " of its kind ; it \'s '
    "well @-@ known . Players ' boats pass at 10 ° N . \n \n = = Name = = \n \n Nobody knows [ why ] : they asked . \n"
)
PAGES = [PAGE, PAGE.replace("Bridge", "Town")]


@pytest.fixture(scope="module")
def harness() -> Any:
    policy = tiny_policy()
    return HUGGINGFACE.HFLM(pretrained=policy.model, tokenizer=policy.tokenizer, max_length=48, batch_size=4)


def ours(items: list[Item], window: int = 48) -> list[list[float]]:
    with Unsteered().on(tiny_policy()) as steered:
        return Likelihood(steered, 0.0, window=window, batch_tokens=300).of(items)


def loaded(path: Path, task: str, text: str) -> list[Item]:
    path.write_text(text)
    (found,) = load_utility(UtilitySettings.model_validate({"tasks": [task], task: path, "items": None, "words": None}))
    return found.items


def test_multiple_choice(harness: Any, tmp_path: Path) -> None:
    items = loaded(tmp_path / "h.jsonl", "hellaswag", "".join(json.dumps(row) + "\n" for row in SCENES))
    got = ours(items)
    datasets = pytest.importorskip("datasets")
    docs = {doc["query"]: doc for doc in process_docs(datasets.Dataset.from_list(SCENES))}
    theirs = []
    for item, values in zip(items, got, strict=True):
        doc = next(d for d in docs.values() if d["query"] == item.context and d["gold"] == item.answer)
        assert [ending[1:] for ending in item.endings] == doc["choices"]
        assert item.sizes == tuple(map(len, doc["choices"]))
        requests = MultipleChoiceTask.construct_requests(None, doc, doc["query"])
        results = harness.loglikelihood(requests, disable_tqdm=True)
        assert values == pytest.approx([result[0] for result in results], abs=1e-4)
        theirs.append(MultipleChoiceTask.process_results(None, doc, results))
    scores = scores_of(
        "hellaswag",
        {item.id: (np.array(v), np.array(item.sizes, float), item.answer) for item, v in zip(items, got, strict=True)},
    )
    assert scores.values.tolist() == [one["acc_norm"] for one in theirs]
    assert scores.unnormalised is not None
    assert scores.unnormalised.tolist() == [one["acc"] for one in theirs]
    assert 0 < scores.values.sum() < len(items)


PASSAGES: list[dict[str, Any]] = [
    {"passage": f"{title} -- A town lies by a river. {n} families live there.", "question": question, "label": n % 2}
    for n, (title, question) in enumerate(
        (title, question)
        for title in ("Town", "River (film)")
        for question in ("is there a bridge", "do  two families agree", "can the town be old ")
    )
]
EXAMS: list[dict[str, Any]] = [
    {
        "subject": subject,
        "question": f" {question}\n",
        "choices": ["one", "two ", "a small town", "$4"],
        "answer": n % 4,
    }
    for n, (subject, question) in enumerate(
        (subject, question)
        for subject in ("high_school_european_history", "us_foreign_policy", "abstract_algebra")
        for question in ("Who met at the bridge?", "Which of these   is a number?", "Why?")
    )
]


# One ending is long and one short, so that log-probability per character often chooses another than the whole. Blanks,
# quotes, letters beyond ASCII and a line break are what templates tend to lose.
GOALS: list[dict[str, Any]] = [
    {"goal": goal, "sol1": short if n % 2 else long, "sol2": long if n % 2 else short, "label": n // 2 % 2}
    for n, (goal, (short, long)) in enumerate(
        (goal, ways)
        for goal in ("How do you bake a tray of bread?", "to cross  a river ", 'Say "it\'s \u00e9t\u00e9" {{twice}}')
        for ways in (
            ("Sing.", "Turn it over and over again, slowly,  until the town is asleep"),
            (" a boat", 'Build the longest bridge of its kind, at 10 \u00b0 N, "well" known [step] '),
            ("go home", "tell a story\nabout a river and a small town; they've met"),
            ("?", "Walk {{goal}} to the 'water', then wait"),
        )
    )
]
ROWS = {"boolq": PASSAGES, "mmlu": EXAMS, "piqa": GOALS}
FILES = {"boolq": "super_glue/boolq/default.yaml", "piqa": "piqa/piqa.yaml"}


@pytest.mark.parametrize("task", ["boolq", "mmlu", "piqa"])
def test_tasks_by_their_files(task: str, tmp_path: Path) -> None:
    """By the harness's own files for the tasks: description, template, choices and metrics."""
    folder = Path(lm_eval.__file__).parent / "tasks"
    rows = ROWS[task]
    items = loaded(tmp_path / "r.jsonl", task, "".join(json.dumps(row) + "\n" for row in rows))
    got = ours(items, window=1024)
    policy = tiny_policy()
    harness = HUGGINGFACE.HFLM(pretrained=policy.model, tokenizer=policy.tokenizer, batch_size=4)
    metrics: dict[str, dict[str, float]] = {}
    by_texts = {(item.context, item.endings): (item, values) for item, values in zip(items, got, strict=True)}
    for row in rows:
        config = load_yaml(folder / FILES.get(task, f"mmlu/default/mmlu_{row.get('subject')}.yaml"))
        of_one = tmp_path / f"{len(metrics)}.jsonl"
        of_one.write_text(json.dumps(row) + "\n")
        splits = dict.fromkeys(("training_split", "fewshot_split", "fewshot_config"))
        asked = ConfigurableTask(
            config={**config, **splits, "dataset_path": "json", "dataset_name": None, "validation_split": "train",
                    "test_split": None, "dataset_kwargs": {"data_files": str(of_one), "cache_dir": str(tmp_path)}}
        )  # fmt: skip
        (doc,) = asked.validation_docs()
        context = asked.fewshot_context(doc, num_fewshot=0)
        requests = asked.construct_requests(doc, context)
        item, values = by_texts[context, tuple(request.args[1] for request in requests)]
        assert item.sizes == tuple(map(len, asked.doc_to_choice(doc)))
        results = harness.loglikelihood(requests, disable_tqdm=True)
        assert values == pytest.approx([result[0] for result in results], abs=1e-4)
        metrics[item.id] = asked.process_results(doc, results)
    scores = scores_of(
        task,
        {item.id: (np.array(v), np.array(item.sizes, float), item.answer) for item, v in zip(items, got, strict=True)},
    )
    metric = "acc_norm" if task == "piqa" else "acc"
    assert scores.values.tolist() == [metrics[item.id][metric] for item in items]
    if task == "piqa":
        assert scores.unnormalised is not None
        assert scores.unnormalised.tolist() == [metrics[item.id]["acc"] for item in items]
        assert scores.values.tolist() != scores.unnormalised.tolist()
    assert 0 < scores.values.sum() < len(items)


def test_running_text(harness: Any, tmp_path: Path) -> None:
    assert as_written(PAGE) == wikitext_detokenizer({"page": PAGE})
    items = loaded(tmp_path / "w.tokens", "wikitext", "".join(PAGES))
    by_text = {wikitext_detokenizer({"page": page}): page for page in PAGES}
    results = {}
    for text, page in by_text.items():
        asked = Instance("loglikelihood_rolling", {}, (text,), 0)
        (found,) = harness.loglikelihood_rolling([asked], disable_tqdm=True)
        results[text] = process_results({"page": page}, (found,))["word_perplexity"]
    got = {item.endings[0]: (values[0], item.sizes[0]) for item, values in zip(items, ours(items), strict=True)}
    assert got.keys() == results.keys()
    for text, (found, words) in got.items():
        assert (found, words) == (pytest.approx(results[text][0], abs=1e-3), results[text][1])
    surprise, words = (np.array([pair[place] for pair in got.values()], float) for place in (0, 1))
    summary = summarise_utility({"wikitext": TaskScores(tuple(got), -surprise, words, None)})["wikitext"]
    assert summary.value == pytest.approx(weighted_perplexity(list(results.values())), rel=1e-4)
    assert math.isfinite(summary.value)
