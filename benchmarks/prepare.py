"""What both sides start from, made once: ``python prepare.py MODEL FOLDER N…`` writes the model as a plain folder,
and N prompts with their token ids, for each N.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rewardlm.config import ModelSettings
from rewardlm.data.prompts import load_prompts
from rewardlm.models.load import load_policy


def main(spec: str, folder: Path, numbers: list[int]) -> None:
    """Prompts are a seeded sample of the packaged RealToxicityPrompts, in the order of their source."""
    policy = load_policy(ModelSettings(model=spec, dtype="float32", device="cpu"))
    policy.model.save_pretrained(folder / "model")
    policy.tokenizer.save_pretrained(folder / "model")
    for number in numbers:
        prompts = load_prompts("rtp:packaged", limit=number, seed=0).prompts
        with open(folder / f"prompts-{number}.jsonl", "w", encoding="utf-8") as file:
            for prompt in prompts:
                ids = policy.chat.encode_prompt(prompt.turns)
                row = {"id": prompt.id, "prompt": prompt.text, "ids": ids}
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), [int(number) for number in sys.argv[3:]])
