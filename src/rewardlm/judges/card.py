"""A trained judge on disk: a standard classifier or adapter, ``judge.json`` for our scorer, and a card for people."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewardlm.data.dialogues import normalised
from rewardlm.judges.calibrate import Calibration
from rewardlm.judges.settings import JudgeTrainSettings
from rewardlm.runs import write_atomically
from rewardlm.scoring.encoder import public_name
from rewardlm.scoring.lineage import READ, read_numbers, teachers_of, write_read
from rewardlm.scoring.trained import judge_folder

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
    teacher: Mapping[str, Any] | None,
    read: Iterable[str],
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
        "encoder_layers": settings.layers,
        "max_length": settings.max_length,
        "calibration": {
            label: dataclasses.asdict(found) for label, found in calibration.items() if found.kind == "isotonic"
        },
        "calibrated": {label: found.kind for label, found in calibration.items()},
        "data": [dict(source) for source in sources],
        "distilled": [dict(judge) for judge in distilled],
        "teacher": None if teacher is None else dict(teacher),
        "share": settings.share,
        "read": write_read(folder, map(normalised, read), _of_teachers(settings)),
        "command": command(settings),
        "seed": settings.seed,
    }
    write_atomically(folder / RECORD, json.dumps(record, indent=1, allow_nan=False).encode())
    write_card(folder, record)


def _of_teachers(settings: JudgeTrainSettings) -> list[NDArray[np.uint64]]:
    """What the judges that teach this one have read, where they say so."""
    folders = [judge_folder(name) for name in [*settings.distil, *([settings.teacher] if settings.teacher else [])]]
    found = [read_numbers(folder) for folder in folders if folder is not None]
    return [numbers for numbers in found if numbers is not None]


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
        f"Encoder {record['encoder']}{_lowest(record)}, seed {record['seed']}. Calibration: "
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
    if teachers_of(record):
        lines += [
            "",
            "| taught by | its label | encoder | revision | its data |",
            "|---|---|---|---|---|",
            *(
                f"| {judge['judge']} | {judge['label']} | {judge.get('encoder') or 'not stated'} | "
                f"{_short(judge['revision'])} | {', '.join(s['kind'] for s in judge['data']) or 'not stated'} |"
                for judge in teachers_of(record)
            ),
        ]
    if record.get("share", "all") != "all":
        lines += ["", f"Of each data set it reads the share that is {record['share']}'s (data/split.py)."]
    if record.get("read"):
        lines += ["", f"It and its teachers read {record['read']:,} different texts; `{READ}` holds their hashes."]
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


def _lowest(record: Mapping[str, Any]) -> str:
    layers = record.get("encoder_layers")
    return "" if layers is None else f" (its lowest {layers} layers)"


def _short(revision: str | None) -> str:
    return f"`{revision[:16]}…`" if revision else "not stated"


def _figure(value: float | None) -> str:
    return "—" if value is None else f"{value:.3f}"


def _written(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list | bool) or value is None else str(value)
