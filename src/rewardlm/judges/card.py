"""Writes the card of a judge that was trained here (README.md, from ``judge.json``), and adds figures to both.

Labels, teachers, data sets and suites have names that somebody else chose, so all of them are escaped.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rewardlm.errors import ConfigError
from rewardlm.markdown import markdown
from rewardlm.runs import write_atomically
from rewardlm.scoring.lineage import READ
from rewardlm.scoring.record import (
    Counted,
    JudgeRecord,
    PairFigures,
    Speed,
    TextFigures,
    add_figures,
    judge_folder,
    read_record,
    write_record,
)

# By kind of control (``pair_data.controls``), how a card describes the prompt under which an answer stands.
_CONTROLS = {
    "permuted": "is another dialogue's, of any target",
    "other target": "is hate of another target",
    "other claim": "makes another claim about the same target, without a common word",
    "harmless": "claims nothing against anybody",
    "meaningless": "means nothing",
    "toxic": "is toxic and names no group",
}


def card_folder(name: str) -> Path:
    """The folder of the judge ``name``, which has a card. Raises ConfigError for a judge that was not trained here."""
    folder = judge_folder(name)
    if folder is None or read_record(folder) is None:
        raise ConfigError(f"{name} has no judge.json: only a judge made by judge train has a card to write to")
    return folder


def save_record(folder: Path, record: JudgeRecord) -> None:
    """Write ``judge.json``, and the card made from it."""
    write_record(folder, record)
    write_card(folder, record)


def add_to_card(
    folder: Path, figures: Mapping[str, TextFigures] | Mapping[str, PairFigures], speed: Speed | None = None
) -> None:
    """Write figures into ``judge.json`` and the card of the judge in ``folder``, beside those already there."""
    write_card(folder, add_figures(folder, figures, speed))


def write_card(folder: Path, record: JudgeRecord) -> None:
    """Write README.md. Figures of evaluations are in it once ``judge evaluate`` has added them."""
    lines = _pair_card(folder.name, record) if record.kind == "pairs" else _text_card(folder.name, record)
    write_atomically(folder / "README.md", ("\n".join(lines) + "\n").encode("utf-8", "replace"))


def command(
    words: Sequence[str], settings: Mapping[str, Any], defaults: Mapping[str, Any], flags: Sequence[str] = ()
) -> str:
    """The command line that trains a judge again: ``rewardlm judge WORDS``, and what differs from the defaults.

    The keys of ``settings`` and ``defaults`` are the names that overrides use; those in ``flags`` are written as flags.
    """
    more: list[str] = []
    for key, value in settings.items():
        if key == "device" or (key in defaults and value == defaults[key]):
            continue
        written = value if isinstance(value, str) else json.dumps(value)
        more += [f"--{key}", written] if key in flags else [f"{key}={written}"]
    return shlex.join(["rewardlm", "judge", *words, *more, "--out", "DIR"])


def _text_card(name: str, record: JudgeRecord) -> list[str]:
    lowest = "" if record.encoder_layers is None else f" (its lowest {record.encoder_layers} layers)"
    calibrated = ", ".join(f"{label} {kind}" for label, kind in record.calibrated.items()) or "none"
    lines = [
        *_head(f"{name}: a judge of toxicity", record),
        f"Labels: {markdown(', '.join(record.labels))}; the main one is {markdown(record.main)}. Each output is "
        f"P(label) by a sigmoid. Texts longer than {record.max_length} tokens are cut at the end.",
        *_how(
            record,
            f"Encoder {markdown(str(record.encoder))}{lowest}, seed {record.seed}. "
            f"Calibration: {markdown(calibrated)}.",
        ),
        "| data | texts | licence | SHA-256 of the file |",
        *_sources(record),
    ]
    if record.teachers:
        lines += [
            "",
            "| taught by | its label | encoder | revision | its data |",
            "|---|---|---|---|---|",
            *(
                f"| {markdown(judge.judge)} | {markdown(judge.label)} | {markdown(judge.encoder or 'not stated')} | "
                f"{'not stated' if judge.revision is None else _beginning(judge.revision)} | "
                f"{markdown(', '.join(source.kind for source in judge.data) or 'not stated')} |"
                for judge in record.teachers
            ),
        ]
    if record.share not in (None, "all"):
        lines += ["", f"Of each data set it reads the share that is {markdown(str(record.share))}'s (data/split.py)."]
    if record.read:
        lines += ["", f"It and its teachers read {record.read:,} different texts; `{READ}` holds their hashes."]
    if record.figures:
        lines += [
            "",
            "## What it knows, on data that it never trained on",
            "| suite | label | n | AUC | Spearman | calibration error |",
            "|---|---|---|---|---|---|",
            *(
                f"| {markdown(suite)} | {markdown(found['label'])} | {found['n']:,} | {_number(found['auc'])} | "
                f"{_number(found['spearman'])} | {_number(found['ece'])} |"
                for suite, found in record.figures.items()
            ),
        ]
    if record.limits:
        lines += ["", "## What it does not know", *(f"- {markdown(limit)}" for limit in record.limits)]
    return lines


def _pair_card(name: str, record: JudgeRecord) -> list[str]:
    lines = [
        *_head(f"{name}: a judge of (prompt, answer) pairs", record),
        "P(label) by a softmax over counter_narrative (opposes the prompt's claim, on topic), agreement (agrees, goes "
        "on with the hate, or abuses in turn), refusal and off_topic. Input: `[CLS] prompt [SEP] answer [SEP]`, up to "
        f"{record.max_length} tokens; the prompt loses its beginning first.",
        *_how(
            record,
            f"Encoder {markdown(str(record.encoder))}, seed {record.seed}, LoRA. Temperature {record.temperature:.2f}, "
            "set on what is held out and folded into the head.",
        ),
        "| data | texts | licence | SHA-256 |",
        *_sources(record),
    ]
    for source, found in record.pair_figures.items():
        lines += ["", *pair_section(source, found, markdown)]
    return [*lines, "", "## Limits", *(f"- {markdown(limit)}" for limit in record.limits)]


def pair_section(source: str, found: PairFigures, written: Callable[[str], str]) -> list[str]:
    """Figures of a judge of pairs on ``source`` as Markdown. ``written`` makes a name harmless where it is shown: on
    the card, or in the terminal.
    """
    labels = [written(label) for label in found["labels"]]
    return [
        f"## On {written(source)}",
        f"{found['n']:,} pairs of {found['dialogues']:,} dialogues, as many of each class, none of them trained on.",
        "",
        "| figure | value | 95 % |",
        "|---|---|---|",
        f"| AUC against hateful turns | {_number(found['auc_hate'])} | {_range(found['auc_hate_ci95'])} |",
        f"| AUC against the rest | {_number(found['auc'])} | {_range(found['auc_ci95'])} |",
        *(f"| … against {written(label)} | {_number(value)} | |" for label, value in found["auc_against"].items()),
        f"| accuracy | {_number(found['accuracy'])} | {_range(found['accuracy_ci95'])} |",
        f"| macro F1 | {_number(found['macro_f1'])} | |",
        f"| precision, recall of counter-narratives | {_number(found['precision'])}, {_number(found['recall'])} | |",
        "",
        f"| true \\ found | {' | '.join(labels)} |",
        "|---|" + "---|" * len(labels),
        *(f"| {label} | {' | '.join(map(str, row))} |" for label, row in zip(labels, found["confusion"], strict=True)),
        *_control_lines(found["controls"], written),
    ]


def _head(title: str, record: JudgeRecord) -> list[str]:
    import yaml

    about = {"base_model": record.encoder, "pipeline_tag": "text-classification", "language": "en"}
    return ["---", yaml.safe_dump(about, sort_keys=False, width=10_000).rstrip("\n"), "---", f"# {markdown(title)}", ""]


def _how(record: JudgeRecord, sentence: str) -> list[str]:
    # Longer than any that the command holds, so that none ends it.
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", record.command)), default=2))
    return ["", "## How it was made", fence, record.command, fence, sentence, ""]


def _sources(record: JudgeRecord) -> list[str]:
    """The rows of the table of data, without its head."""
    rows = [
        f"| {markdown(one.kind)} | {one.texts or 0:,} | {markdown(one.licence or 'not stated')} | "
        f"{_beginning(one.sha256 or '')} |"
        for one in record.data
    ]
    return ["|---|---|---|---|", *rows]


def _control_lines(found: Mapping[str, Counted], written: Callable[[str], str]) -> list[str]:
    if not found:
        return []
    return [
        "",
        "| its answers under a prompt that … | pairs | called counter-narratives |",
        "|---|---|---|",
        *(
            f"| {_CONTROLS.get(kind) or written(kind)} | {counted['n']:,} | {_number(_share(counted))} |"
            for kind, counted in sorted(found.items())
        ),
    ]


def _share(counted: Counted) -> float | None:
    return counted["called"] / counted["n"] if counted["n"] else None


def _beginning(text: str) -> str:
    """That of a hash or a revision, as code where nothing in it could end the code."""
    shown = f"{text[:16]}…"
    return f"`{shown}`" if re.fullmatch(r"[\w.+-]*…", shown) else markdown(shown)


def _number(value: float | None) -> str:
    return "—" if value is None else f"{value:.3f}"


def _range(interval: Sequence[float] | None) -> str:
    return "—" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"
