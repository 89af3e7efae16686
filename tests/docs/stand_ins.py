"""What stands in for a large model, a service or an hour of training, so that a page's own commands can be run.

Everything else of a command is used as it is printed: its flags, its settings, its files, its order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

# Names in the place of others, wherever a word of a command is one, or is a part of a list with commas.
NAMES = {
    "smollm2-135m": "tiny",
    "witness": "lexical2",  # reads 18 layers of a language model
}
# In Python, in this order.
PYTHON: list[tuple[str, str]] = [
    (r'"smollm2-135m"', '"tiny"'),
    (r"limit=\d+", "limit=4, max_new_tokens=8, similarity=False, perplexity=False, counter_narrative=None"),
    (r'dialogues="starter-plain"', 'dialogues="starter-plain", limit=4'),
    (r"steps=\d+", 'steps=1, batch_size=4, max_new_tokens=8, limit=4, witness="none"'),
    (r"samples=\d+", "samples=2"),
]
# Few prompts, short answers, no models that only describe answers. They come last, so they win over flags.
_MEASURE = ["limit=4", "max_new_tokens=6", "similarity=false", "perplexity=false", "counter_narrative=null"]
_UTILITY = ["utility.items=4", "utility.words=20"]
_FINETUNE = ["limit=4", "epochs=1"]
_RLAF = ["limit=4", "steps=1", "batch_size=4", "minibatches=1", "ppo_epochs=1", "max_new_tokens=6", "witness=none"]
_RLAF += ["rewards.terms.counter_narrative=0", "rewards.terms.similarity=0", "rewards.terms.refusal=0"]
# Of two answers only one may be chosen, and by chance it is the worse one of every prompt; of 4 × 8 hardly.
_PREFER = ["limit=8", "samples=4", "steps=1", "batch_size=2", "max_new_tokens=6", "witness=none"]
_PREFER += [
    "retain.pieces=4",
    "rewards.terms.counter_narrative=0",
    "rewards.terms.similarity=0",
    "rewards.terms.refusal=0",
]
SMALL: dict[str, list[str]] = {
    "measure": _MEASURE,
    "finetune": _FINETUNE,
    "rlaf": _RLAF,
    "prefer": _PREFER,
    "interpret": ["limit=2", "look_inside=false", "attribution.tokens=1"],
    "judge evaluate": ["limit=8", "n_resamples=100", "speed=false"],
    "judge train": ["limit=8", "epochs=1", "evaluations=1"],
}
# An experiment has the settings of its stages; those that a file leaves out stay out.
STAGES = {"measure": _MEASURE, "finetune": _FINETUNE, "rlaf": _RLAF, "prefer": _PREFER, "prefer_again": _PREFER}


def arguments(typed: Sequence[str], folder: Path) -> list[str]:
    """The words after ``rewardlm`` with names replaced, and with the settings that make the command small."""
    words = [_named(word) for word in typed]
    command = " ".join(words[:2]) if words[:1] == ["judge"] else words[0] if words else ""
    if "--help" in words:
        return words
    if command in ("run", "demo"):
        return [*words, *_experiment(words, folder)]
    if command == "prefer" and "--preferences" in words:
        return words  # nothing is drawn
    algorithm = next((words[i + 1] for i, word in enumerate(words[:-1]) if word == "--algorithm"), "ppo")
    more = list(SMALL.get(command, []))
    several = any(word.startswith("--samples") for word in words)
    if (command == "rlaf" and algorithm != "ppo") or (command == "measure" and several):
        more.append("samples=2")
    if command == "measure" and "--suite" in words:
        more += _UTILITY
    return [*words, *more]


def _named(word: str) -> str:
    """``word``, or of its parts between commas and = those that have a stand-in."""
    return re.sub(r"(?<![\w/.-])[\w-]+(?![\w/.-])", lambda part: NAMES.get(part[0], part[0]), word)


def _experiment(words: Sequence[str], folder: Path) -> list[str]:
    file = next((folder / word for word in words[1:] if word.endswith(".yaml")), None)
    text = "measure:\nfinetune:\nrlaf:\n" if file is None else file.read_text("utf-8")
    small = [f"{stage}.{one}" for stage, of in STAGES.items() if re.search(rf"^{stage}:", text, re.M) for one in of]
    small += [f"measure.{one}" for one in _UTILITY] if "suite: utility" in text else []
    return ["model=tiny", "interpret=null", *small, "measure.scorer=[lexical,lexical2]"]


def python(code: str) -> str:
    """A snippet with the stand-ins above."""
    for pattern, instead in PYTHON:
        code = re.sub(pattern, instead, code)
    return code


def written_by(code: str) -> set[str]:
    """Folders and files that a page's blocks write: --out NAME, and out="NAME"."""
    return set(re.findall(r'(?:--out |\bout=")([^\s"]+)', code))
