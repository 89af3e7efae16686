"""What a judge of pairs gets right on exchanges that it never saw, and the card that says so.

One pair of each class for every exchange, so chance is 25 % and the classes weigh alike. Refusals, phrases of
agreement, abuse and chatter are our own held-out lines; counter-narratives, hateful turns and answers to others are the
data set's. The most telling figure is ``auc_hate``: its counter-narratives against its other hateful turns.

Beside them stand controls: the same answers under prompts that they don't oppose. The share of these that is called a
counter-narrative is what tone alone earns.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rewardlm.data.dialogues import load_dialogues
from rewardlm.judges.metrics import BoolArray, FloatArray, auc
from rewardlm.judges.pair_data import Exchange, PairExample, controls, draw, exchanges, own_texts, permuted
from rewardlm.judges.settings import PairEvaluateSettings
from rewardlm.models.load import resolve_device
from rewardlm.runs import write_atomically
from rewardlm.scoring.pairs import COUNTER_NARRATIVE, PAIR_LABELS, PairJudge, load_pair_judge, most_likely
from rewardlm.stats import bootstrap_ci95

RESAMPLES = 1000
_CONTROLS = {
    "permuted": "is another dialogue's, of any target",
    "other target": "is hate of another target",
    "other claim": "makes another claim about the same target, without a common word",
    "harmless": "claims nothing against anybody",
    "meaningless": "means nothing",
    "toxic": "is toxic and names no group",
}


def evaluate_on(settings: PairEvaluateSettings) -> dict[str, Any]:
    """Figures of ``evaluate_pairs`` on dialogues and our held-out lines.

    Raises ScorerError for a judge that can't be loaded, and DataError for dialogues that can't be read.
    """
    judge = load_pair_judge(settings.judge, device=str(resolve_device(settings.device)))
    found = exchanges(load_dialogues(settings.dialogues).dialogues)
    if settings.limit is not None and settings.limit < len(found):
        found = random.Random(settings.seed).sample(found, settings.limit)
    ours = own_texts("held_out")
    return evaluate_pairs(
        judge, draw(found, ours, "held out"), held_out_controls(found, settings.seed), seed=settings.seed
    )


def held_out_controls(found: Sequence[Exchange], seed: int) -> list[PairExample]:
    """Controls of exchanges that are held out: each answer under another dialogue's prompt, and under two others."""
    return [*permuted(found, seed), *controls(found, own_texts("held_out"), "held out", 2)]


def evaluate_pairs(
    judge: PairJudge, examples: Sequence[PairExample], tests: Sequence[PairExample] = (), *, seed: int = 0
) -> dict[str, Any]:
    """Figures of ``judge`` on ``examples``, none of which has an empty answer, and on the controls ``tests``.

    ``auc`` is of P(counter_narrative) against the rest, ``auc_against`` against one other class, ``auc_hate`` the data
    set's counter-narratives against its hateful turns; their intervals are 95 % percentile bootstraps over dialogues
    (1,000 resamples). ``precision`` and ``recall`` are of pairs whose likeliest class is counter_narrative.
    ``confusion`` is Int[true, found] in the order of ``labels``; ``kinds`` counts the classes found by kind of pair.
    ``controls`` says of each kind of control how many there are (``n``) and how many are called counter-narratives
    (``called``).
    """
    verdicts = judge.judge([(example.prompt, example.answer) for example in examples])
    probabilities = np.array([[(verdict or {})[label] for label in PAIR_LABELS] for verdict in verdicts])
    found = probabilities.argmax(1)
    truth = np.array([PAIR_LABELS.index(example.label) for example in examples])
    confusion = np.zeros((len(PAIR_LABELS), len(PAIR_LABELS)), int)
    np.add.at(confusion, (truth, found), 1)
    counter = PAIR_LABELS.index(COUNTER_NARRATIVE)
    scores, positive = probabilities[:, counter], truth == counter
    kinds = np.array([example.kind for example in examples])
    told = np.isin(kinds, ("counter-narrative", "hateful turn"))
    dialogues = np.array([example.dialogue_id for example in examples])
    correct = np.diag(confusion)
    asked, called = confusion.sum(1), confusion.sum(0)
    return {
        "n": len(examples),
        "dialogues": len(set(dialogues)),
        "accuracy": float(correct.sum() / len(examples)),
        "accuracy_ci95": _interval(lambda rows: float((truth == found)[rows].mean()), dialogues, seed),
        "macro_f1": float(np.mean(2 * correct / np.maximum(asked + called, 1))),
        "precision": float(correct[counter] / called[counter]) if called[counter] else None,
        "recall": float(correct[counter] / asked[counter]) if asked[counter] else None,
        "auc": auc(scores, positive),
        "auc_ci95": _interval(lambda rows: auc(scores[rows], positive[rows]), dialogues, seed),
        "auc_against": {
            label: _auc_of(scores, positive, positive | (truth == number))
            for number, label in enumerate(PAIR_LABELS)
            if number != counter
        },
        "auc_hate": _auc_of(scores, positive, told),
        "auc_hate_ci95": _interval(
            lambda rows: auc(scores[rows][told[rows]], positive[rows][told[rows]]), dialogues, seed
        ),
        "labels": list(PAIR_LABELS),
        "confusion": confusion.tolist(),
        "kinds": {
            str(kind): {label: int((found[kinds == kind] == number).sum()) for number, label in enumerate(PAIR_LABELS)}
            for kind in dict.fromkeys(kinds)
        },
        "controls": _called(judge, tests),
    }


def _called(judge: PairJudge, tests: Sequence[PairExample]) -> dict[str, dict[str, int]]:
    verdicts = judge.judge([(test.prompt, test.answer) for test in tests])
    found: dict[str, dict[str, int]] = {}
    for test, verdict in zip(tests, verdicts, strict=True):
        counted = found.setdefault(test.kind, {"n": 0, "called": 0})
        counted["n"] += 1
        counted["called"] += verdict is not None and most_likely(verdict) == COUNTER_NARRATIVE
    return found


def _auc_of(scores: FloatArray, positive: BoolArray, among: BoolArray) -> float | None:
    return auc(scores[among], positive[among])


def _interval(statistic: Callable[[Any], float | None], dialogues: Any, seed: int) -> list[float] | None:
    """Over dialogues: pairs made of one dialogue are not independent."""
    interval = bootstrap_ci95(statistic, dialogues, n_resamples=RESAMPLES, seed=seed)
    return None if interval is None else list(interval)


def add_figures(folder: Path, name: str, figures: Mapping[str, Any]) -> None:
    """Put figures of ``evaluate_pairs`` on the data set ``name`` into the judge's ``judge.json`` and card."""
    record = json.loads((folder / "judge.json").read_text(encoding="utf-8"))
    record["metrics"] = {**record.get("metrics", {}), name: dict(figures)}
    write_record(folder, record)


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """``judge.json``, and ``README.md`` made of it."""
    write_atomically(folder / "judge.json", (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())
    write_atomically(folder / "README.md", ("\n".join(_card(folder.name, record)) + "\n").encode())


def _card(name: str, record: Mapping[str, Any]) -> list[str]:
    lines = [
        "---",
        f"base_model: {record['encoder']}",
        "pipeline_tag: text-classification",
        "language: en",
        "---",
        f"# {name}: a judge of (prompt, answer) pairs",
        "",
        "P(label) by a softmax over counter_narrative (opposes the prompt's claim, on topic), agreement (agrees, goes "
        "on with the hate, or abuses in turn), refusal and off_topic. Input: `[CLS] prompt [SEP] answer [SEP]`, up to "
        f"{record['max_length']} tokens; the prompt loses its beginning first.",
        "",
        "## How it was made",
        "```",
        record["command"],
        "```",
        f"Encoder {record['encoder']}, seed {record['seed']}, LoRA. Temperature {record['temperature']:.2f}, set on "
        "what is held out and folded into the head.",
        "",
        "| data | texts | licence | SHA-256 |",
        "|---|---|---|---|",
        *(
            f"| {source['source']} | {source['texts']:,} | {source['licence']} | `{source['sha256'][:16]}…` |"
            for source in record["data"]
        ),
    ]
    for source, found in record.get("metrics", {}).items():
        lines += ["", *section(source, found)]
    return [*lines, "", "## Limits", *(f"- {limit}" for limit in record["limits"])]


def section(source: str, found: Mapping[str, Any]) -> list[str]:
    """Figures of ``evaluate_pairs`` on ``source`` as Markdown, for the card and the terminal."""
    labels = found["labels"]
    return [
        f"## On {source}",
        f"{found['n']:,} pairs of {found['dialogues']:,} dialogues, as many of each class, none of them trained on.",
        "",
        "| figure | value | 95 % |",
        "|---|---|---|",
        f"| AUC against hateful turns | {_number(found['auc_hate'])} | {_range(found['auc_hate_ci95'])} |",
        f"| AUC against the rest | {_number(found['auc'])} | {_range(found['auc_ci95'])} |",
        *(f"| … against {label} | {_number(value)} | |" for label, value in found["auc_against"].items()),
        f"| accuracy | {_number(found['accuracy'])} | {_range(found['accuracy_ci95'])} |",
        f"| macro F1 | {_number(found['macro_f1'])} | |",
        f"| precision, recall of counter-narratives | {_number(found['precision'])}, {_number(found['recall'])} | |",
        "",
        f"| true \\ found | {' | '.join(labels)} |",
        "|---|" + "---|" * len(labels),
        *(f"| {label} | {' | '.join(map(str, row))} |" for label, row in zip(labels, found["confusion"], strict=True)),
        *_control_lines(found.get("controls", {})),
    ]


def _control_lines(found: Mapping[str, Mapping[str, int]]) -> list[str]:
    if not found:
        return []
    return [
        "",
        "| its answers under a prompt that … | pairs | called counter-narratives |",
        "|---|---|---|",
        *(
            f"| {_CONTROLS.get(kind, kind)} | {counted['n']:,} | {counted['called'] / counted['n']:.3f} |"
            for kind, counted in sorted(found.items())
        ),
    ]


def _number(value: float | None) -> str:
    return "—" if value is None else f"{value:.3f}"


def _range(interval: Sequence[float] | None) -> str:
    return "—" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"
