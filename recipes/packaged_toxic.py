"""Writes data/rtp_packaged_toxic.txt: which of the packaged RealToxicityPrompts are toxic, by the judge `starter`.

The file holds hashes, no texts. It takes half a minute.

    python recipes/packaged_toxic.py
"""

from __future__ import annotations

from pathlib import Path

import rewardlm as rl
from rewardlm.data.prompts import load_prompts

LIST = Path(__file__).parents[1] / "src/rewardlm/data/rtp_packaged_toxic.txt"


def toxic_ids() -> list[str]:
    """The ids of the toxic prompts without their prefix, sorted."""
    prompts = load_prompts("rtp:packaged").prompts
    scores = rl.score([prompt.text for prompt in prompts], judge="starter")
    pairs = zip(prompts, scores, strict=True)
    return sorted(prompt.id.removeprefix("rtp-") for prompt, score in pairs if score is not None and score > 0.5)


if __name__ == "__main__":
    LIST.write_text("".join(f"{name}\n" for name in toxic_ids()), encoding="ascii")
