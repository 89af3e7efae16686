"""How fast a judge scores: against a plain transformers pipeline, and against the most that the machine can multiply.

    make bench-judge            or  python benchmarks/judge_speed.py [--judge DIR] [--threads N] [--cpu-time]

Everything is timed in turns within one call, and each figure is the best of several turns, because machines are noisy;
on a machine that others use at the time, --threads 1 --cpu-time counts the CPU's seconds instead of the clock's. The
limit is the time of the encoder's matrix products alone, 2·weights·tokens/F, at the rate F of one such product measured
in the same turns; η is limit/measured, tokenisation included.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import time
import warnings
from collections.abc import Callable
from importlib import resources
from itertools import pairwise

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import pipeline
from transformers.utils import logging

from rewardlm.scoring.classifier import ClassifierScorer
from rewardlm.scoring.scorer import score_texts

BAR = 300  # texts of 20 tokens a second on two cores


def main() -> None:
    """Time everything in turns and print one table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", default="starter", help="a name or folder as for --scorer")
    parser.add_argument("--texts", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=20, help="word pieces a text, special ones not counted")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds instead of the clock's")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")  # torch.ao says that it will move to another package

    scorers = {name: ClassifierScorer(options.judge, precision=name) for name in ("float32", "bfloat16")}
    plain, tokenizer = scorers["float32"]._model, scorers["float32"]._tokenizer
    texts = texts_of(tokenizer, options.texts, options.tokens)
    int8 = ClassifierScorer(options.judge, precision="float32")
    int8._model = torch.ao.quantization.quantize_dynamic(int8._model, {nn.Linear}, dtype=torch.qint8)
    peer = pipeline("text-classification", model=plain, tokenizer=tokenizer, top_k=None, function_to_apply="sigmoid")

    runs: dict[str, Callable[[], object]] = {
        "pipeline, 32": lambda: list(peer(texts, batch_size=32)),
        "pipeline, 64": lambda: list(peer(texts, batch_size=64)),
        "ours, float32": lambda: score_texts(scorers["float32"], texts),
        "ours, bfloat16": lambda: score_texts(scorers["bfloat16"], texts),
        "int8, unused": lambda: score_texts(int8, texts),
        "tokenizer alone": lambda: scorers["float32"]._encode(texts),
    }
    products = {name: product(plain, getattr(torch, name)) for name in scorers}
    clock = time.process_time if options.cpu_time else time.perf_counter
    best = dict.fromkeys([*runs, *products], float("inf"))
    for _ in range(options.turns):
        for name, run in runs.items():
            best[name] = min(best[name], timed(run, clock))
        for name, (run, _) in products.items():
            best[name] = min(best[name], *(timed(run, clock) for _ in range(5)))

    n_tokens = sum(len(row["input_ids"]) for row in scorers["float32"]._encode(texts))
    weights = sum(m.weight.numel() for m in plain.base_model.encoder.modules() if isinstance(m, nn.Linear))
    rates = {name: flop / best[name] for name, (_, flop) in products.items()}
    limits = {name: 2 * weights * n_tokens / rate for name, rate in rates.items()}
    exact = values(scorers["float32"], texts)
    fastest_peer = min(best[name] for name in runs if name.startswith("pipeline"))
    rows = []
    for name in runs:
        limit = limits["bfloat16" if "bfloat16" in name else "float32"]
        judge = {"ours, bfloat16": scorers["bfloat16"], "int8, unused": int8}.get(name)
        moved = np.abs(values(judge, texts) - exact) if judge is not None else None
        ours = judge or (scorers["float32"] if name == "ours, float32" else None)
        company = company_matters(ours, texts[:128]) if ours is not None else None
        rows.append(
            {
                "what": name,
                "texts_per_second": len(texts) / best[name],
                "ratio_to_pipeline": fastest_peer / best[name],
                # int8 multiplies at a rate that isn't measured here.
                "eta": None if name.startswith(("tokenizer", "int8")) else limit / best[name],
                "mean_moved": None if moved is None else float(moved.mean()),
                "max_moved": None if moved is None else float(moved.max()),
                "max_by_company": company,
            }
        )
    report = {
        "machine": f"{platform.processor() or platform.machine()}, {torch.cpu.get_capabilities().get('cpu_name', '')}",
        "torch": torch.__version__,
        "threads": options.threads,
        "clock": "CPU" if options.cpu_time else "wall",
        "judge": options.judge,
        "texts": len(texts),
        "tokens_per_text": n_tokens / len(texts),
        "gflops": {name: rate / 1e9 for name, rate in rates.items()},
        "limit_texts_per_second": {name: len(texts) / limit for name, limit in limits.items()},
        "bar_texts_per_second": BAR * options.threads / 2,
        "rows": rows,
    }
    print(json.dumps(report, indent=1)) if options.json else show(report)


def texts_of(tokenizer: object, number: int, tokens: int) -> list[str]:
    """Pieces of the starter dialogues of exactly ``tokens`` word pieces each, none twice."""
    raw = resources.files("rewardlm.data").joinpath("starter/dialogues.jsonl").read_text("utf-8")
    messages = [message["content"] for line in raw.splitlines() for message in json.loads(line)["messages"]]
    ids = tokenizer("\n".join(messages), add_special_tokens=False, verbose=False)["input_ids"]
    found: dict[str, None] = {}
    for start in range(0, len(ids) - tokens):
        text = tokenizer.decode(ids[start : start + tokens])
        # A text that begins within a word may be tokenised differently when it is read again.
        if len(tokenizer(text, add_special_tokens=False)["input_ids"]) == tokens:
            found[text] = None
    return random.Random(0).sample(list(found), min(number, len(found)))


def product(model: nn.Module, dtype: torch.dtype) -> tuple[Callable[[], object], float]:
    """Ten products of 2,048 tokens with the encoder's widest matrix, and their FLOP."""
    widest = max((m for m in model.modules() if isinstance(m, nn.Linear)), key=lambda m: m.weight.numel())
    linear = nn.Linear(widest.in_features, widest.out_features).to(dtype)
    x = torch.randn(2048, widest.in_features).to(dtype)

    def run() -> None:
        with torch.inference_mode():
            for _ in range(10):
                linear(x)

    return run, 10.0 * 2 * len(x) * widest.weight.numel()


def timed(run: Callable[[], object], clock: Callable[[], float]) -> float:
    """Seconds that ``run`` takes by ``clock``."""
    begun = clock()
    run()
    return clock() - begun


def values(scorer: ClassifierScorer, texts: list[str]) -> np.ndarray:
    """P of every label, Float[N, L]."""
    return np.array([list(verdict.values.values()) for verdict in scorer.score(texts)])


def company_matters(scorer: ClassifierScorer, texts: list[str]) -> float:
    """How far a text's values move at most when it is scored alone instead of among others of any length."""
    crowd = [*texts, *(f"{one} {two}" for one, two in pairwise(texts))]
    alone = np.concatenate([values(scorer, [text]) for text in crowd])
    return float(np.abs(values(scorer, crowd) - alone).max())


def show(report: dict) -> None:
    """The report for people."""
    console = Console()
    console.print(
        f"{report['judge']} on {report['machine']}, torch {report['torch']}, {report['threads']} threads, "
        f"{report['clock']} time; {report['texts']} texts of {report['tokens_per_text']:.1f} tokens with special ones"
    )
    for name, rate in report["gflops"].items():
        limit = report["limit_texts_per_second"][name]
        console.print(f"{name}: {rate:.0f} GFLOP/s, so at most {limit:.0f} texts a second")
    table = Table()
    for heading in ("", "texts/s", "ratio", "η", "ΔP mean", "ΔP max", "alone"):
        table.add_column(heading, justify="left" if not heading else "right")
    for row in report["rows"]:
        moved = [row["mean_moved"], row["max_moved"], row["max_by_company"]]
        table.add_row(
            row["what"],
            f"{row['texts_per_second']:.0f}",
            f"{row['ratio_to_pipeline']:.2f}",
            "" if row["eta"] is None else f"{row['eta']:.2f}",
            *("" if value is None else f"{value:.1e}" for value in moved),
        )
    console.print(table)
    console.print(
        "ratio: to the faster pipeline. ΔP: distance from float32. alone: how far P moves when a text is scored alone "
        "instead of among others."
    )
    console.print(f"the bar for as many threads: {report['bar_texts_per_second']:.0f} texts a second")


if __name__ == "__main__":
    main()
