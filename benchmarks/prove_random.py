"""Is anything claimed of an adapter of random weights on a real model? Nothing in it is worth a claim.

    python benchmarks/prove_random.py --adapter runs/demo/train/RL [--subjects 12] [--out FILE] [--write]

Every subject has random weights, each module as large as that of the trained adapter. It goes through what ``interpret
patching=true`` does, both on pairs of the base's own answers and on pairs with the subject's new answers, with the same
20 random controls for all subjects: these don't depend on the subject. (So subjects aren't independent trials, and the
share of those with a claim has no interval.) A subject none of whose sites has a larger
estimate than all controls can't have a claim, so only the others are patched. What is found is appended to --out, so it
goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from page import write_between
from prove_inside import PAGE

from rewardlm.config import CausesSettings, GenerationSettings, ModelSettings
from rewardlm.data.prompts import load_prompts
from rewardlm.interpreting.causes.pairs import JudgedPair, asked_once, draw_pairs, own_pairs
from rewardlm.interpreting.causes.patching import (
    Effects,
    Switch,
    as_random,
    largest_effect,
    patch_sites,
    random_controls,
    site_effects,
)
from rewardlm.interpreting.mechanistic.asked_judges import toxicity_by
from rewardlm.models.load import load_policy
from rewardlm.models.lora import POLICY, load_adapter, using
from rewardlm.scoring.load import load_scorer

# Controls are the seeds 0 to 19 of the settings.
_FIRST_SUBJECT = 1000
WORDS = {"harmless": "of the base’s own answers", "own": "with its own new answers"}


def may_be_claimed(own: Effects, controls: list[Effects]) -> bool:
    """Whether any head or MLP is beyond all controls: the second of the two tests, by estimates."""
    writes = np.array([site.kind != "stream" for site in own.sites])
    return any(
        largest_effect(values(own), writes) > max(largest_effect(values(one), writes) for one in controls)
        for values in (lambda one: one.through, lambda one: one.own)
    )


def main() -> None:
    """Draw pairs and controls, then one subject after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--adapter", type=Path, required=True, help="as large as this one: a run, or a PEFT folder")
    parser.add_argument("--judge", default="witness")
    parser.add_argument("--subjects", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("runs/prove-random.jsonl"))
    parser.add_argument("--write", action="store_true", help="put the table into docs/interpretation-inside.md")
    given = parser.parse_args()
    settings = CausesSettings(generation=GenerationSettings(top_p=0.9))
    policy = load_policy(ModelSettings(model=given.model))
    load_adapter(policy, given.adapter)
    judge = toxicity_by(load_scorer(given.judge))
    words = toxicity_by(load_scorer("lexical"))
    prompts = load_prompts("rtp:packaged:toxic", part="measure", limit=100).prompts
    asked = [
        asked_once(
            policy.tokenizer,
            tuple(policy.chat.encode_prompt(prompt.turns)),
            [turn.text for turn in prompt.turns],
            words,
        )
        for prompt in prompts
    ]
    pairs, placebo = draw_pairs(policy, asked, judge, settings)
    print(f"{len(pairs)} pairs", flush=True)

    def of_itself(on: Switch) -> list[JudgedPair]:
        return own_pairs(policy, on, pairs[: settings.random_pairs], judge, settings)[0]

    controls: dict[str, list[Effects]] = {
        "harmless": random_controls(policy, POLICY, pairs, settings),
        "own": random_controls(policy, POLICY, pairs, settings, of_itself),
    }
    print("20 controls", flush=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    for number in range(len(known), given.subjects):
        subject = as_random(policy, POLICY, _FIRST_SUBJECT + number)
        on_own = own_pairs(policy, subject, pairs, judge, settings)
        claimed = {}
        with subject():
            for way, (looked_at, on_placebo) in (("harmless", (pairs, placebo)), ("own", on_own)):
                (effects,) = site_effects(policy, looked_at, [lambda: using(policy, POLICY)], settings.batch_tokens)
                claimed[way] = []
                if is_beyond := may_be_claimed(effects, controls[way]):
                    _, facts = patch_sites(policy, POLICY, looked_at, on_placebo, controls[way], settings)
                    claimed[way] = sorted({*facts.origins, *facts.claimed})
                what = "beyond all controls" if is_beyond else "not beyond all controls"
                print(f"{number}, pairs {WORDS[way]}: {what}, claims {claimed[way] or 'none'}", flush=True)
        known.append(claimed)
        with given.out.open("a") as file:
            file.write(json.dumps(claimed) + "\n")
    n = len(known)
    lines = ["| pairs | random adapters | something is claimed of |", "|---|---|---|"]
    for way, words_of in WORDS.items():
        wrong = sum(bool(one[way]) for one in known)
        lines.append(f"| {words_of} | {n} | {wrong} |")
    print("\n".join(lines))
    if given.write:
        write_between("random", "\n".join(lines), PAGE)


if __name__ == "__main__":
    main()
