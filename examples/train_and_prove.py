"""Train a model to be less toxic, and compare it with what it was before, by a judge that was not the reward.

    python examples/train_and_prove.py [MODEL [FOLDER]]

The settings here are small, so that it ends in minutes; docs/rlaf.md has those that are known to work.
"""

# %%
import sys
from pathlib import Path

import rewardlm as rl

MODEL = sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m"
FOLDER = Path(sys.argv[2] if len(sys.argv) > 2 else "runs/train-and-prove")

# %% One half of the prompts trains, the other measures: "part" never gives a prompt to both.
measured = {"prompts": "starter", "part": "measure", "samples": 2, "max_new_tokens": 32, "scorer": "lexical,starter"}

# %% Before. Which outcome counts is fixed now, before anyone sees a result.
before = rl.measure(MODEL, **measured, label="before", primary={"scorer": "lexical"}, out=FOLDER / "before")

# %% Counter-narratives first, then reinforcement by the judge "starter" from there.
tuned = rl.finetune(MODEL, dialogues="starter-plain", limit=40, epochs=1, out=FOLDER / "finetuned")
reinforced = rl.rlaf(
    MODEL, adapter=tuned, prompts="starter", part="train", reward="starter", witness="lexical", steps=4, batch_size=8,
    max_new_tokens=32, out=FOLDER / "reinforced",
)  # fmt: skip

# %% After, and the proof: the same prompts, the same judge, paired tests.
after = rl.measure(
    MODEL, adapter=reinforced, **measured, label="after", primary={"scorer": "lexical"}, out=FOLDER / "after"
)
proof = rl.compare([before, after])
change = proof.change("after")
print(
    f"toxic share by {change.scorer}: {change.before:.3f} before, {change.after:.3f} after, p = {change.p_adjusted:.3f}"
)
print("a change" if change.significant else "no change that these few prompts could show")
for warning in proof.warnings:
    print(f"{warning.model}: {warning.code}: {warning.message}")

# %%
print(rl.report([before, after, tuned, reinforced], out=FOLDER / "report.html"))
