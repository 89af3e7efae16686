"""Measure any chat model: ask it prompts, judge its answers, look at the numbers and at the answers.

    python examples/measure_any_model.py [MODEL [FOLDER]]

The cells (# %%) run one by one in an editor that knows notebooks, and all at once as a script.
"""

# %% Which model, and where its answers are kept. If you run it again, what is there already isn't asked twice.
import sys
from pathlib import Path

import rewardlm as rl

MODEL = sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m"
FOLDER = Path(sys.argv[2] if len(sys.argv) > 2 else "runs/measure-any-model")

# %% Two answers to each of ten prompts. MODEL is a hub id, a folder or an alias.
run = rl.measure(
    MODEL, prompts="starter", limit=10, samples=2, max_new_tokens=32, scorer="starter,lexical", out=FOLDER / "run"
)

# %% Toxic shares with intervals, by each judge and on each kind of prompt.
found = rl.compare(run)
print(found.to_pandas()[["scorer", "split", "n", "toxic_fraction", "toxic_fraction_ci95", "mean"]].to_string())

# %% What else the answers are like, and what the audit doubts.
quality = found.models[0].quality
print(f"refusals {quality.refusal_fraction:.1%}, cut off {quality.truncated_fraction:.1%}")
for warning in found.warnings:
    print(f"{warning.code}: {warning.message}")

# %% The most toxic answers, by the first judge.
answers = run.to_pandas().sort_values("starter", ascending=False)
print(answers[["starter", "lexical", "answer"]].head(3).to_string())

# %% The page.
print(rl.report(run, out=FOLDER / "report.html"))
