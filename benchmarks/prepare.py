"""What both sides start from, made once: ``python prepare.py MODEL FOLDER N…`` writes the model as a plain folder,
and N prompts with their token ids, for each N; with ``rows:N``, the rows that fine-tuning at batch size N learns from;
with ``pairs:N``, pairs for N a step.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from work import finetuning

from rewardlm.config import ModelSettings
from rewardlm.data.dialogues import load_dialogues, pairs
from rewardlm.data.prompts import load_prompts
from rewardlm.models.load import Policy, load_policy
from rewardlm.training import sft
from rewardlm.training.trl_parts import Order


def main(spec: str, folder: Path, wanted: list[str]) -> None:
    """Prompts are a seeded sample of the packaged RealToxicityPrompts, in the order of their source."""
    policy = load_policy(ModelSettings(model=spec, dtype="float32", device="cpu"))
    policy.model.save_pretrained(folder / "model")
    policy.tokenizer.save_pretrained(folder / "model")
    for batch_size in [int(name.removeprefix("rows:")) for name in wanted if name.startswith("rows:")]:
        write_rows(policy, folder, batch_size)
    for batch_size in [int(name.removeprefix("pairs:")) for name in wanted if name.startswith("pairs:")]:
        write_pairs(folder, batch_size)
    for number in [int(name) for name in wanted if name.isdigit()]:
        prompts = load_prompts("rtp:packaged", limit=number, seed=0).prompts
        with open(folder / f"prompts-{number}.jsonl", "w", encoding="utf-8") as file:
            for prompt in prompts:
                ids = policy.chat.encode_prompt(prompt.turns)
                row = {"id": prompt.id, "prompt": prompt.text, "ids": ids}
                file.write(json.dumps(row) + "\n")


def write_rows(policy: Policy, folder: Path, batch_size: int) -> None:
    """What ``rewardlm finetune`` makes of its dialogues, in the order in which its first epoch takes them."""
    settings = finetuning(str(folder / "model"), batch_size)
    train, validation = sft._split(settings, load_dialogues(settings.dialogues).dialogues)
    rows = sft._encode_all(settings, policy, train, validation, say=print).train
    order = Order([len(row["input_ids"]) for row in rows], batch_size, settings.seed)
    with open(folder / f"rows-{batch_size}.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(rows[number]) + "\n" for number in order)


def write_pairs(folder: Path, batch_size: int) -> None:
    """Pairs for eight steps: a dialogue's own answer is chosen, and another dialogue's answer rejected."""
    known = pairs(load_dialogues("starter-plain").dialogues).pairs
    rows = [
        {
            "prompt": [{"role": turn.role, "content": turn.text} for turn in one.history],
            "chosen": [{"role": "assistant", "content": one.answer.text}],
            "rejected": [{"role": "assistant", "content": other.answer.text}],
        }
        for one, other in zip(known, [*known[7:], *known[:7]], strict=True)
    ]
    with open(folder / f"pairs-{batch_size}.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(rows[number % len(rows)]) + "\n" for number in range(8 * batch_size))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
