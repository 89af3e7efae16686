"""A run's prompts and sampling settings as a task for lm-evaluation-harness: a YAML file and its prompts beside it.

So you can compare our answers with those of a tool that loads and samples models in its own way. ``lm_eval`` imports
what that tool logs, under the same prompt ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from rewardlm.errors import ConfigError, RunError
from rewardlm.measuring.exported import open_measured, replacing
from rewardlm.runs import Run, prompts_hash
from rewardlm.types import Prompt


def export_task(paths: Sequence[Path], out: Path) -> list[str]:
    """Write ``out`` (.yaml) and, beside it, ``STEM.prompts.jsonl``. Returns what the task can't express.

    With several runs, the first one's settings are taken. Raises RunError if they answered different prompts, and
    ConfigError if the name of ``out`` doesn't end in .yaml or .yml.
    """
    out = Path(out)
    if out.suffix.lower() not in (".yaml", ".yml"):
        raise ConfigError(f"{out}: expected a name that ends in .yaml, got {out.suffix or 'no suffix'}")
    runs = [open_measured(Path(path)) for path in paths]
    run, prompts = runs[0], runs[0].prompts()
    ours = prompts_hash(prompts)
    for other in runs[1:]:
        if prompts_hash(other.prompts()) != ours:
            raise RunError(f"prompts_differ: {run.path} and {other.path} answered different prompts: export one alone")
    data = out.with_suffix(".prompts.jsonl")
    limits = _limits(run, prompts, len(runs))
    task = _task(run, data.name, ours)
    header = [
        f"The prompts and sampling settings of the run {_one_line(run.label)}, for lm-evaluation-harness 0.4.x.",
        "Run it in this folder, since it names its prompts relative to where it is run:",
        f"  lm_eval --model hf --model_args {_one_line(_model(run))} --tasks {task['task']} --include_path . \\",
        f"    {'' if _plain(run) else '--apply_chat_template '}--log_samples --output_path out",
        "  rewardlm import out/…/samples_….jsonl --label NAME --out DIR; then rewardlm score DIR --scorer …",
        "What this task can't express:",
        *(f"- {sentence}" for sentence in limits),
    ]
    text = "".join(f"# {line}\n" for line in header) + yaml.safe_dump(task, sort_keys=False, allow_unicode=True)
    toxic_by = run.meta.get("toxic_by", "dataset")
    # The prompts first: a task whose prompts are missing is worse than prompts without a task.
    with replacing(data) as temporary:
        temporary.write_text("".join(_document(prompt, toxic_by) for prompt in prompts), encoding="ascii")
    with replacing(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return limits


def _document(prompt: Prompt, toxic_by: str) -> str:
    document = {
        "prompt_id": prompt.id,
        "prompt": {"text": prompt.text, "toxicity": prompt.toxicity},
        "challenging": prompt.challenging,
        "antecedents": json.dumps([{"role": turn.role, "text": turn.text} for turn in prompt.turns[:-1]]),
        "toxic_by": toxic_by,
    }
    return json.dumps(document, allow_nan=False) + "\n"


def _task(run: Run, data: str, prompts: str) -> dict[str, Any]:
    settings = run.meta["settings"]
    tokens, sampling = settings.get("max_new_tokens"), settings.get("generation")
    kwargs: dict[str, Any] = {"until": []}
    if tokens is not None:
        kwargs["max_gen_toks"] = tokens
    if sampling is not None:
        greedy = sampling["temperature"] == 0
        kwargs |= {"do_sample": not greedy, "temperature": float(sampling["temperature"])}
        if not greedy:
            # Given even if they change nothing: else the model's own defaults would step in.
            kwargs |= {"top_p": float(sampling["top_p"]), "top_k": sampling["top_k"]}
        kwargs |= {name: sampling[name] for name in ("min_new_tokens", "no_repeat_ngram_size") if sampling.get(name)}
    return {
        "task": "rewardlm_" + (re.sub(r"[^a-z0-9]+", "_", run.label.lower()).strip("_") or "run"),
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": data}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{prompt.text}}",
        "doc_to_target": "",
        "num_fewshot": 0,
        "repeats": run.meta.get("samples") or settings.get("samples") or 1,
        "generation_kwargs": kwargs,
        # No judge of lm-eval's own: the answers are logged, and judged after the import.
        "metric_list": [{"metric": "bypass", "aggregation": "bypass", "higher_is_better": False}],
        "metadata": {"version": 1.0, "prompts_hash": prompts},
    }


def _limits(run: Run, prompts: Sequence[Prompt], runs: int) -> list[str]:
    settings = run.meta["settings"]
    chat = settings.get("chat") or {}
    histories = sum(len(prompt.turns) > 1 for prompt in prompts)
    found = ["our draws: each answer has a seed of its own, made of seed, prompt and sample; lm-eval has one per run"]
    name = str(settings.get("model", ""))
    if name and "/" not in name:
        source = f", which was {run.meta['model_source']}" if run.meta.get("model_source") else ""
        found.append(_one_line(f"the model {name}, an alias of RewardLM's{source}: put its path or hub id for MODEL"))
    if settings.get("load"):
        found.append(f"the quantised base: it was loaded in {settings['load']}")
    if histories:
        found.append(
            f"earlier turns: {histories} of {len(prompts)} prompts have some (field antecedents), but a document is "
            "one user turn, so they are not sent"
        )
    if chat.get("system"):
        found.append(f"the system turn: give it with --system_instruction {_one_line(json.dumps(chat['system']))}")
    if chat.get("template", "auto") not in ("auto", "plain"):
        found.append(f"the chat template {_one_line(chat['template'])}: the tokenizer's own is used")
    if settings.get("generation") is None or settings.get("max_new_tokens") is None:
        found.append("sampling: the run doesn't say how its answers were drawn, so lm-eval's defaults apply")
    elif settings["generation"].get("no_repeat_ngram_size") or settings["generation"].get("min_new_tokens"):
        found.append("min_new_tokens and no_repeat_ngram_size: only --model hf knows them")
    if runs > 1:
        found.append(f"the other {runs - 1} runs' models and settings: export each alone")
    return found


def _model(run: Run) -> str:
    name, adapter = str(run.meta["settings"].get("model", "")), run.meta.get("adapter")
    return f"pretrained={name if '/' in name else 'MODEL'}" + (f",peft={adapter}" if adapter else "")


def _plain(run: Run) -> bool:
    return (run.meta["settings"].get("chat") or {}).get("template") == "plain"


def _one_line(text: str) -> str:
    """``text`` on one line, for a comment: a line break in a label would end it."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)).split())
