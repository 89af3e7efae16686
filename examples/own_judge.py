"""A judge of your own: any function of texts can measure, train, and be the reward in other libraries' trainers.

python examples/own_judge.py [MODEL [FOLDER]]
"""

# %% The judge is the function "shouting" in shouting.py, beside this file.
import sys
from pathlib import Path

import rewardlm as rl

sys.path.insert(0, str(Path(__file__).parent))
JUDGE = "shouting:shouting"
MODEL = sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m"
FOLDER = Path(sys.argv[2] if len(sys.argv) > 2 else "runs/own-judge")

# %% On texts, beside another judge. An empty text is unscored, and never "not toxic".
texts = ["Good morning, everybody.", "GET OUT OF HERE!", "Get out, you idiot.", ""]
print(rl.score(texts, [JUDGE, "lexical"]).to_pandas().to_string())

# %% On a model's answers.
run = rl.measure(MODEL, prompts="starter", limit=4, max_new_tokens=16, scorer=f"{JUDGE},lexical", out=FOLDER / "run")
print(run.to_pandas()[[JUDGE, "lexical", "answer"]].to_string())

# %% As a reward for TRL: GRPOTrainer(reward_funcs=[reward], …). A judge that finds insults less toxic than kind words
# is refused. This one sees only capitals, so it is checked on texts that it can tell apart.
probe = {"toxic": ["SHUT UP, YOU IDIOT!", "GO TO HELL!"], "benign": ["Please stay.", "Tell me more."]}
reward = rl.reward_function(JUDGE, probe=probe)
print(reward(["Thank you, that was kind.", "WHAT DO YOU WANT?"]))

# %% And in our own loop, with a penalty for leaving the base model (KL).
trained = rl.rlaf(
    MODEL, prompts="starter", limit=8, reward=JUDGE, rewards={"probe": probe}, witness="lexical", steps=2, batch_size=4,
    max_new_tokens=16, out=FOLDER / "trained",
)  # fmt: skip
print(trained.to_pandas()[["step", "reward_mean", "kl", "response_tokens"]].to_string())
