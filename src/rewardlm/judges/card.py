"""A trained judge on disk: a standard classifier or adapter, ``judge.json`` for our scorer, and a card for people."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rewardlm.judges.calibrate import Calibration
from rewardlm.judges.settings import JudgeTrainSettings
from rewardlm.runs import write_atomically
from rewardlm.scoring.encoder import public_name

RECORD = "judge.json"


def save_judge(
    folder: Path,
    *,
    model: Any,
    tokenizer: Any,
    settings: JudgeTrainSettings,
    revision: str | None,
    calibration: Mapping[str, Calibration],
    sources: Sequence[Mapping[str, Any]],
    distilled: Sequence[Mapping[str, Any]],
) -> None:
    """Write weights (safetensors), tokenizer, ``judge.json`` and ``README.md`` into ``folder``.

    An adapter is stored in half precision, a few megabytes: its rounding is far below the noise of its labels.
    """
    if settings.tuning == "lora":
        encoder = public_name(settings.encoder)
        for config in model.peft_config.values():
            config.base_model_name_or_path = encoder
            config.revision = None
        model.half()
        model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
        model.float()
    else:
        # A calibrated judge's classes are its labels: other tools read them from the model's config.
        model.save_pretrained(str(folder), safe_serialization=True)
        tokenizer.save_pretrained(str(folder))
    record = {
        "kind": "text",
        "labels": list(settings.labels),
        "main": settings.main,
        "problem_type": "multi_label_classification",
        "encoder": public_name(settings.encoder),
        "encoder_revision": revision,
        "max_length": settings.max_length,
        "calibration": {
            label: dataclasses.asdict(found) for label, found in calibration.items() if found.kind == "isotonic"
        },
        "calibrated": {label: found.kind for label, found in calibration.items()},
        "data": [dict(source) for source in sources],
        "distilled": [dict(judge) for judge in distilled],
        "command": command(settings),
        "seed": settings.seed,
    }
    write_atomically(folder / RECORD, json.dumps(record, indent=1, allow_nan=False).encode())
    write_card(folder, record)


def command(settings: JudgeTrainSettings) -> str:
    """The command line that trains this judge again: what differs from the defaults is said."""
    defaults = JudgeTrainSettings(data=["starter"])
    parts = ["rewardlm", "judge", "train", "--data", ",".join(settings.data), "--encoder", settings.encoder]
    mine, theirs = settings.model_dump(mode="json"), defaults.model_dump(mode="json")
    for key, value in mine.items():
        if key in ("data", "encoder", "device") or value == theirs[key]:
            continue
        if isinstance(value, dict):
            before = theirs[key]
            parts += [f"{key}.{sub}={_written(item)}" for sub, item in value.items() if before.get(sub) != item]
        elif key == "seed":
            parts += ["--seed", str(value)]
        else:
            parts.append(f"{key}={_written(value)}")
    return shlex.join([*parts, "--out", "DIR"])


def write_card(folder: Path, record: Mapping[str, Any]) -> None:
    """README.md from ``judge.json``; figures of evaluations are in it once ``judge evaluate`` has added them."""
    lines = [
        "---",
        f"base_model: {record['encoder']}",
        "pipeline_tag: text-classification",
        "language: en",
        "---",
        f"# {folder.name}: a judge of toxicity",
        "",
        f"Labels: {', '.join(record['labels'])}; the main one is {record['main']}. Each output is P(label) "
        f"by a sigmoid. Texts longer than {record['max_length']} tokens are cut at the end.",
        "",
        "## How it was made",
        "```",
        record["command"],
        "```",
        f"Encoder {record['encoder']}, seed {record['seed']}. Calibration: "
        f"{', '.join(f'{label} {kind}' for label, kind in record['calibrated'].items()) or 'none'}.",
        "",
        "| data | texts | licence | SHA-256 of the file |",
        "|---|---|---|---|",
        *(
            f"| {source['kind']} | {source['texts']:,} | {source['licence'] or 'not stated'} "
            f"| `{source['sha256'][:16]}…` |"
            for source in record["data"]
        ),
    ]
    if record.get("distilled"):
        lines += [
            "",
            "| distilled judge | its label | revision | its data |",
            "|---|---|---|---|",
            *(
                f"| {judge['judge']} | {judge['label']} | {_short(judge['revision'])} "
                f"| {', '.join(source['kind'] for source in judge['data']) or 'not stated'} |"
                for judge in record["distilled"]
            ),
        ]
    metrics = record.get("metrics")
    if metrics:
        lines += [
            "",
            "## What it knows, on data that it never trained on",
            "| suite | label | n | AUC | Spearman | calibration error |",
            "|---|---|---|---|---|---|",
            *(
                f"| {name} | {found['label']} | {found['n']:,} | {_figure(found['auc'])} | "
                f"{_figure(found['spearman'])} | {_figure(found['ece'])} |"
                for name, found in metrics.items()
            ),
        ]
    if record.get("limits"):
        lines += ["", "## What it does not know", *(f"- {limit}" for limit in record["limits"])]
    write_atomically(folder / "README.md", ("\n".join(lines) + "\n").encode())


def _short(revision: str | None) -> str:
    return f"`{revision[:16]}…`" if revision else "not stated"


def _figure(value: float | None) -> str:
    return "—" if value is None else f"{value:.3f}"


def _written(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list | bool) or value is None else str(value)
