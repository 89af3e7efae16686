"""A training run in the terminal, while it runs or afterwards: where it is, how its numbers went, what it answers.

Reads what the run has appended so far, so it can be looked at from another terminal or another machine.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rewardlm.errors import RunError
from rewardlm.runs import TRAININGS, Run
from rewardlm.terminal import plain

_BLOCKS = "▁▂▃▄▅▆▇█"
_WIDTH = 40
_Number = Callable[[Mapping[str, Any]], Any]
_NUMBERS = {
    "reward": "reward_mean",
    "toxicity": "toxicity_mean",
    "loss": "loss",
    "validation loss": "eval_loss",
    "pairs right": "pair_accuracy",
    "margin": "implicit_reward_margin",
    "KL": "kl",
    "KL coefficient": "kl_coef",
    "weight of similarity": "similarity_weight",
    "entropy": "entropy",
    "tokens": "response_tokens",
    "cut off": "truncated_fraction",
    "clipped": "clip_fraction",
    "capped": "capped_fraction",
    "learning rate": "learning_rate",
    "seconds": "seconds",
}


def find_training(path: Path) -> Run:
    """The training run at ``path``; in an experiment, the one written to last. Raises RunError if there is none."""
    run = Run.open(path)
    if run.meta["kind"] == "experiment":
        found = [Run.open(file.parent) for pattern in ("*/run.json", "*/*/run.json") for file in path.glob(pattern)]
        trainings = [inner for inner in found if inner.meta["kind"] in TRAININGS]
        if not trainings:
            raise RunError(f"{path} is an experiment that has not begun to train: nothing to watch yet")
        run = max(trainings, key=lambda inner: _written(inner.path))
    if run.meta["kind"] not in TRAININGS:
        raise RunError(f"{path} is a run of kind {run.meta['kind']!r}: watch shows trainings ({', '.join(TRAININGS)})")
    return run


def training_view(run: Run, *, step: int | None = None, rows: int = 8) -> RenderableType:
    """Head, curves, the last ``rows`` steps, the samples of ``step`` (default: the newest), and the warnings.

    Raises RunError if no samples of ``step`` were kept.
    """
    metrics, samples = list(run.read("metrics")), list(run.read("samples"))
    if step is not None and not any(sample["step"] == step for sample in samples):
        kept = sorted({sample["step"] for sample in samples})
        raise RunError(
            f"{run.path}: no samples of step {step}; steps with samples: {', '.join(map(str, kept)) or 'none'}"
        )
    parts: list[RenderableType] = [_head(run, metrics)]
    if metrics:
        columns = _columns(metrics)
        parts += [_curves(columns, metrics), _steps(columns, metrics[-rows:])]
    newest = step if step is not None else max((sample["step"] for sample in samples), default=None)
    parts += [_sample(sample) for sample in samples if sample["step"] == newest]
    if run.meta.get("stopped"):
        parts.append(Text(f"stopped: {_one_line(str(run.meta['stopped']))}", style="red"))
    warned = [(line["step"], text) for line in metrics for text in line.get("warnings") or []]
    parts += [Text(f"warning, step {at}: {plain(text)}", style="yellow") for at, text in warned[-3:]]
    if len(warned) > 3:
        parts.append(Text(f"({len(warned):,} warnings in all)", style="yellow"))
    return Group(*parts)


def sparkline(values: Sequence[float], width: int = _WIDTH) -> str:
    """The course of ``values`` in at most ``width`` blocks, each the mean of its share, from lowest to highest."""
    n = min(width, len(values))
    shares = [values[len(values) * i // n : len(values) * (i + 1) // n] for i in range(n)]
    means = [sum(share) / len(share) for share in shares]
    low, high = min(means), max(means)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((mean - low) * scale)] for mean in means)


def _written(folder: Path) -> float:
    return max(file.stat().st_mtime for file in folder.iterdir() if file.is_file())


def _head(run: Run, metrics: Sequence[Mapping[str, Any]]) -> Text:
    settings, meta = run.meta["settings"], run.meta
    named = {"rlaf": settings.get("algorithm"), "prefer": settings.get("method")}
    what = named.get(meta["kind"]) or {"finetune": "fine-tuning"}.get(meta["kind"], meta["kind"])
    done = metrics[-1]["step"] if metrics else 0
    total = settings.get("steps") or (metrics[-1].get("steps") if metrics else None)
    parts = [f"{what} of {plain(run.setting('model', str))}", f"step {done}" + (f" of {total}" if total else "")]
    if meta["kind"] in named and settings.get("preferences") is None:
        parts.append(f"reward {', '.join(map(plain, run.setting('reward', list[str])))}")
    recent = [line["seconds"] for line in metrics[-5:] if line.get("seconds")]
    if recent and run.meta.get("status") == "running":
        each = sum(recent) / len(recent)
        parts.append(f"{each:.1f} s a step")
        if total:
            left = int(each * (total - done))
            parts.append(f"about {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left")
    parts.append(str(meta.get("status", "")))
    return Text(" · ".join(parts), style="bold")


def _columns(metrics: Sequence[Mapping[str, Any]]) -> dict[str, _Number]:
    """The recorded numbers that are worth a column: the title, and how to read the number from a line."""
    found: dict[str, _Number] = {
        title: operator.methodcaller("get", key)
        for title, key in _NUMBERS.items()
        if any(isinstance(line.get(key), int | float) for line in metrics)
    }
    for name in sorted({name for line in metrics for name in line.get("toxicity_by_witness") or {}}):
        found[f"by {plain(name)}"] = functools.partial(_by_witness, name)
    return found


def _by_witness(name: str, line: Mapping[str, Any]) -> Any:
    return (line.get("toxicity_by_witness") or {}).get(name)


def _curves(columns: Mapping[str, _Number], metrics: Sequence[Mapping[str, Any]]) -> Table:
    table = Table.grid(padding=(0, 2))
    for title, number in columns.items():
        values = [float(value) for line in metrics if isinstance(value := number(line), int | float)]
        if len(values) > 1 and max(values) > min(values):
            course = Text(f"{_short(values[0])} → {_short(values[-1])}")
            table.add_row(Text(title), Text(sparkline(values), style="cyan"), course)
    return table


def _steps(columns: Mapping[str, _Number], metrics: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 1))
    for title in ("step", *columns):
        table.add_column(title, justify="right")
    for line in metrics:
        table.add_row(str(line["step"]), *(_short(number(line)) for number in columns.values()))
    return table


def _sample(sample: Mapping[str, Any]) -> Group:
    judged = {
        "reward": sample.get("reward"),
        **{
            str(name): value for name, value in (sample.get("by_judge") or {"toxicity": sample.get("toxicity")}).items()
        },
        **{f"{name} (witness)": value for name, value in (sample.get("by_witness") or {}).items()},
        **(sample.get("terms") or {}),
    }
    if sample.get("finish") == "length":
        judged["end"] = "cut off"
    if sample.get("reason"):
        judged["not scored"] = _one_line(str(sample["reason"]))
    return Group(
        Text(""),
        Text(f"step {sample['step']}  {_one_line(sample['prompt'])}", style="dim"),
        Text(_one_line(sample["response"]) or "(no text)"),
        Text(
            ", ".join(
                f"{plain(name)} {value if isinstance(value, str) else _short(value)}" for name, value in judged.items()
            ),
            style="cyan",
        ),
    )


def _one_line(text: str) -> str:
    return " ".join(plain(text).split())


def _short(value: Any) -> str:
    if not isinstance(value, int | float):
        return "–"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
