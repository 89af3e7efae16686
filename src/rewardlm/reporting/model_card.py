"""A trained adapter's card for the hub: what it is, what was measured, what casts doubt on it, and how to load it.

Everything is read from runs. Users choose the names of labels, judges and models, so all of them are escaped. Of a path
on somebody's machine, only the last part is shown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from rewardlm.config import flatten
from rewardlm.markdown import markdown
from rewardlm.measuring.comparison import Comparison
from rewardlm.reporting.headline import findings, sentences
from rewardlm.reporting.paper import as_markdown
from rewardlm.runs import Run

# The licences of the data that we know by name.
LICENCES = {
    "starter": "Apache-2.0, written for RewardLM",
    "starter-plain": "Apache-2.0, written for RewardLM",
    "dialoconan": "research only, not to be redistributed (github.com/marcoguerini/CONAN)",
    "rtp": "RealToxicityPrompts, Apache-2.0",
}
_SETTINGS = (
    "dialogues", "preferences", "prompts", "part", "limit", "epochs", "max_steps", "steps", "rounds", "algorithm",
    "method", "beta", "loss_type", "label_smoothing", "sft_weight", "reward", "learning_rate", "batch_size", "samples",
    "minibatches", "ppo_epochs", "max_length", "max_new_tokens", "mask_truncated_completions", "kl", "rewards", "pairs",
    "retain", "lora", "generation", "chat", "dtype", "load", "seed",
)  # fmt: skip
# What a preference training records and does not use: where answers are drawn, where a file gives the preferences, and
# what a method has no use for.
_OF_A_FILE = ("max_length",)
_OF_DRAWING = (
    "prompts", "part", "limit", "epochs", "rounds", "reward", "samples", "max_new_tokens", "rewards", "pairs",
    "generation",
)  # fmt: skip
_OF_OTHER_METHODS: dict[str, tuple[str, ...]] = {
    "dpo": (),
    "kto": ("loss_type", "label_smoothing", "sft_weight"),
    "raft": ("loss_type", "label_smoothing", "sft_weight", "beta"),
}
_OF_PAIRS = ("margin", "toxicity_gap", "topic_gap", "length_ratio", "ended_gap")  # raft, which has none, asks none


@dataclass(frozen=True)
class Base:
    """The model under the adapter: its ``name``, on the hub if ``on_hub``, and where its weights came from."""

    name: str
    on_hub: bool
    source: str


def model_card(
    run: Run, repo: str, base: Base, found: Comparison | None, rewards: Mapping[str, Sequence[str] | None]
) -> str:
    """The card of the training ``run`` as Markdown; ``found`` is what ``compare`` found, ``rewards`` are by label."""
    parts = [
        f"# {markdown(repo.partition('/')[2] or repo)}",
        _what(run, base),
        "## Load it\n\n" + _loading(repo, base),
        "## What was measured\n\n" + _measured(found, rewards),
        "## What casts doubt on it\n\n" + _doubts(run, found),
        "## What it learnt from\n\n" + _data(run),
        "## How it was trained\n\n" + _settings(run),
        "## Limits\n\n" + _limits(base),
    ]
    return "\n\n".join(parts) + "\n"


def _what(run: Run, base: Base) -> str:
    settings = run.meta["settings"]
    if run.meta["kind"] == "finetune":
        how = "fine-tuned on counter-narrative dialogues"
    elif run.meta["kind"] == "prefer" and settings.get("preferences"):
        how = f"trained by {settings.get('method')} on preferences from a file"
    elif run.meta["kind"] == "prefer":
        judges = ", ".join(map(_public, settings.get("reward", [])))
        how = f"trained by {settings.get('method')} on its own answers, as judged by {judges}"
    else:
        judges = ", ".join(map(_public, settings.get("reward", [])))
        how = f"trained by {settings.get('algorithm', 'RL')} with automatic feedback from {judges}"
    return (
        f"A LoRA adapter for {markdown(base.name)}, {markdown(how)} with "
        "RewardLM, to answer toxic prompts less toxically."
    )


def _loading(repo: str, base: Base) -> str:
    rewardlm = (
        f"```\nhf download {repo} --local-dir adapter\n"
        "rewardlm measure BASE --adapter adapter --label ours --out runs/ours\n```"
    )
    if not base.on_hub:
        return (
            f"This card knows no name on the hub for the base, {markdown(base.name)}. If you have the base, put its "
            f"name or folder in place of BASE.\n\n{rewardlm}"
        )
    # As JSON: no name can leave its quotes, or its line.
    name, adapter = json.dumps(base.name), json.dumps(repo)
    python = (
        "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"base = {name}\ntokenizer = AutoTokenizer.from_pretrained(base)\n"
        f"model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), {adapter})\n```"
    )
    return f"{python}\n\nOr with RewardLM:\n\n{rewardlm.replace('BASE', base.name)}"


def _measured(found: Comparison | None, rewards: Mapping[str, Sequence[str] | None]) -> str:
    if found is None:
        return "Nothing: no measurement was given. Whether it is less toxic than its base is not known."
    main = found.main_labels()
    said = ["".join(text for text, _ in sentence) for sentence in sentences(findings(main, rewards), main.scorers)]
    lines = "\n".join(f"- {markdown(sentence)}" for sentence in said)
    return f"{lines}\n\n{as_markdown(found.model_copy(update={'warnings': []}))}".strip()


def _doubts(run: Run, found: Comparison | None) -> str:
    doubts = [] if found is None else [f"{warning.model}: {warning.message}" for warning in found.warnings]
    training = [warning for record in run.read("metrics") for warning in record.get("warnings") or []]
    if training:
        doubts.append(f"training warned {len(training)} times, first: {training[0]}")
    if not doubts:
        return "No audit was run." if found is None else "The audit raised no warning."
    return "\n".join(f"- {markdown(text)}" for text in doubts)


def _data(run: Run) -> str:
    settings = _used(run)
    lines = []
    for what in ("dialogues", "preferences", "prompts"):
        source = settings.get(what)
        if isinstance(source, str):
            lines.append(f"- {what}: {markdown(_public(source))} ({_licence(source)})")
    judges = run.meta.get("rewards") or []
    if judges:
        named = markdown(", ".join(map(_public, judges)))
        lines.append(f"- judges that were its reward, so their verdict is no proof: {named}")
    return "\n".join(lines) or "- nothing is recorded"


def _licence(source: str) -> str:
    return LICENCES.get(source.partition(":")[0].lower(), "its licence is not known here: ask its publisher")


def _used(run: Run) -> dict[str, Any]:
    """The settings that had a part in the training, by name."""
    settings = dict(run.meta["settings"])
    # What was retained, not what was meant to be: a base may have written no text.
    retained = run.meta.get("retain")
    if not (isinstance(retained, Mapping) and retained.get("pieces")):
        settings.pop("retain", None)
    if run.meta["kind"] != "prefer":
        return settings
    pairs = settings.get("pairs")
    if settings.get("method") == "raft" and isinstance(pairs, Mapping):
        settings["pairs"] = {key: value for key, value in pairs.items() if key not in _OF_PAIRS}
    unused: tuple[str, ...] = _OF_A_FILE
    if settings.get("preferences") is not None:
        unused = _OF_DRAWING
        # Also a path that begins in the folder where the command was given is a path on somebody's machine.
        settings["preferences"] = PurePath(str(settings["preferences"])).name
    for name in (*unused, *_OF_OTHER_METHODS.get(str(settings.get("method")), ())):
        settings.pop(name, None)
    return settings


def _settings(run: Run) -> str:
    settings = _used(run)
    rows = [
        f"| {markdown(key)} | {markdown(_written(settings[key]))} |"
        for key in _SETTINGS
        if settings.get(key) not in (None, {})
    ]
    versions = run.meta.get("environment", {}).get("versions", {})
    used = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    steps = run.meta.get("steps")
    return "\n".join(["| setting | |", "| --- | --- |", *rows]) + (
        f"\n\n{markdown(str(steps or 'An unknown number of'))} optimizer or RL steps. Versions: {markdown(used)}."
    )


def _limits(base: Base) -> str:
    text = (
        "Its answers can still be toxic, wrong or beside the point. All numbers above come from judges, which make "
        "errors, and hold for these prompts and their language. A smaller toxic share is no proof that a model is "
        "safe to put before people."
    )
    return f"{text} The base's own licence and limits apply. Base weights in training: {markdown(base.source)}."


def _written(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_written(item)}" for key, item in flatten(value).items() if item not in (None, [], 0))
    if isinstance(value, list):
        return ", ".join(map(_written, value))
    return _public(value) if isinstance(value, str) else str(value)


def _public(name: str) -> str:
    """``name``, or only its last part if it is a path on a machine."""
    is_path = name.startswith(("/", "~", ".", "\\")) or name[1:3] == ":\\"
    return PurePath(name.replace("\\", "/")).name if is_path else name
