"""What steering costs: CPU seconds per token of the answers that are given, against the unsteered model.

    python benchmarks/steering.py                       every method, with 16 answers side by side
    python benchmarks/steering.py --answers 1 4 8 16    and with other numbers of them

All answers are equally long, and methods take turns, so that a busy machine slows all alike; the quickest of three
turns counts. Adapters and vectors are random: a product with them takes as long as with real ones. How many answers
stand side by side matters. A processor's few ones wait for the weights to come from memory, so that a second row costs
little; of many, every row takes its time. Minutes on one core.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from rewardlm.config import GenerationSettings, LoraSettings, ModelSettings, SteerFitSettings
from rewardlm.data.prompts import load_prompts
from rewardlm.models.generate import stream_seed
from rewardlm.models.load import Policy, load_policy
from rewardlm.models.lora import adapter_hash, add_lora, save_adapter
from rewardlm.steering.folder import SteerFolder, fitted_on
from rewardlm.steering.load import load_steering
from rewardlm.steering.record import SteerJudge, SteerRecord
from rewardlm.steering.steered import Drawing, Steering, Unsteered

TURNS = 3
# What we allow, as a multiple of the unsteered model's time.
BARS = {"activation": 1.05, "dexperts": 2.2, "best-of-n": 4.0}


def main() -> None:
    """Print a row for each method, and each number of answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--answers", type=int, nargs="+", default=[16])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--only", nargs="+")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    policy = load_policy(ModelSettings(model=asked.model, dtype=asked.dtype, device="cpu"))
    print(f"{asked.model} in {str(policy.dtype).removeprefix('torch.')}, answers of {asked.tokens} tokens, one core")
    print(f"{'answers':>7}  {'method':12}{'strength':>9}{'ms a token':>12}{'times':>8}{'allowed':>9}")
    with tempfile.TemporaryDirectory() as folder:
        found = _methods(policy, Path(folder))
        methods = {name: how for name, how in found.items() if asked.only is None or name in asked.only}
        for answers in asked.answers:
            _compare(policy, {"unsteered": (Unsteered(), 0.0), **methods}, answers, asked.tokens)


def _compare(policy: Policy, methods: dict[str, tuple[Steering, float]], answers: int, tokens: int) -> None:
    best = dict.fromkeys(methods, float("inf"))
    for _ in range(TURNS):
        for name, (steering, strength) in methods.items():
            best[name] = min(best[name], _seconds(policy, steering, strength, answers, tokens))
    for name, (_, strength) in methods.items():
        times = best[name] / best["unsteered"]
        bar = f"{BARS[name]:.2f}" if name in BARS else ""
        print(f"{answers:7d}  {name:12}{strength:9g}{1000 * best[name]:12.3f}{times:8.3f}{bar:>9}", flush=True)


def _seconds(policy: Policy, steering: Steering, strength: float, answers: int, tokens: int) -> float:
    prompts = load_prompts("rtp:packaged", limit=answers).prompts
    sampling = GenerationSettings(min_new_tokens=tokens)
    with steering.on(policy) as steered:
        requests = [
            steered.request(prompt.turns, stream_seed("bench", prompt.id), strength, 512)[0] for prompt in prompts
        ]
        started = time.process_time()
        given = sum(len(one.tokens) for one in steered.answers(requests, Drawing(tokens, sampling, 8192)))
        return (time.process_time() - started) / given


def _methods(policy: Policy, folder: Path) -> dict[str, tuple[Steering, float]]:
    width = policy.causal_lm.config.hidden_size
    middle = policy.causal_lm.config.num_hidden_layers // 2
    vector = torch.randn(width, generator=torch.Generator().manual_seed(0)) * 0.01
    adapters = {name: _adapter(policy.spec, folder / name, seed) for seed, name in enumerate(("expert", "anti_expert"))}
    adapters["toxic"] = adapters["anti_expert"]

    def made(
        method: str, tensors: dict[str, Any] | None = None, used: tuple[str, ...] = (), **settings: Any
    ) -> Steering:
        known = {"model": policy.spec, "method": method, **settings}
        record = SteerRecord(
            method=method,
            strength=1.0,
            model=fitted_on(policy),
            settings=SteerFitSettings.model_validate(known).of_method(),
            judges=[SteerJudge(name="lexical", labels=["toxicity"])],
            adapters={name: {"path": str(adapters[name]), "hash": adapter_hash(adapters[name])} for name in used},
        )
        return load_steering(SteerFolder(record, tensors or {}))

    run = {"run": "nowhere"}
    basis = torch.linalg.qr(torch.randn(width, 2, generator=torch.Generator().manual_seed(1))).Q
    dexperts = {"expert": "a", "anti_expert": "b"}
    return {
        "system": (made("system"), 1.0),
        "activation": (made("activation", {f"vector.{middle}": vector}, **run), 1.0),
        "profs": (made("profs", {f"basis.{layer}": basis for layer in range(middle, 2 * middle)}, **run), 1.0),
        "dexperts": (made("dexperts", used=("expert", "anti_expert"), dexperts=dexperts), 2.0),
        "selfdebias": (made("selfdebias"), 50.0),
        "task-vector": (made("task-vector", used=("toxic",), task_vector={"toxic_adapter": "b"}), 0.01),
        "pplm": (made("pplm", {"head.weight": vector, "head.bias": torch.zeros(1)}, **run), 1.0),
        "best-of-n": (made("best-of-n"), 4.0),
    }


def _adapter(model: str, folder: Path, seed: int) -> Path:
    policy = load_policy(ModelSettings(model=model, dtype="float32", device="cpu"))
    add_lora(policy, LoraSettings(r=16), seed=seed)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)) * 1e-3)
    save_adapter(policy.model, folder)
    return folder


if __name__ == "__main__":
    main()
