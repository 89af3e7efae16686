"""How fast ``judge serve`` is: against the judge alone in large batches, and a transformers pipeline behind FastAPI.

    python benchmarks/serve_speed.py [--judge starter] [--clients 32] [--seconds 20] [--rounds 3] [--json]

Texts of 20 tokens, one a request, in Perspective's format. First ``--clients`` ask as fast as they are answered; then
requests come at random at half of the rate that was reached, and the slowest 1 % of them tells how long a bot waits.
Everything is run in turns within one call, and each figure is that of the best round. The clients are a process of
their own on the same machine, so they take some of its time; how much is in the table.

Bars of issue 21, for two cores: 80 % of what the judge scores in a batch, and 500 ms for the slowest 1 %.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import subprocess
import sys
import time

from rich.console import Console
from rich.table import Table
from serve_load import ANALYZE, analyze, closed_load, open_load, request_of, server, texts_of

from rewardlm.judges.evaluate import SPEED_WORDS

BAR_SHARE, BAR_P99_MS = 0.8, 500
# The plain way: a route that takes a text, and a pipeline that scores it, in the threads that FastAPI has for that.
PEER = """
import sys
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import pipeline
from transformers.utils import logging
from rewardlm.listening import address_of, listen
from rewardlm.scoring.classifier import ClassifierScorer

logging.set_verbosity_error()
scorer = ClassifierScorer(sys.argv[1], precision="float32")
pipe = pipeline("text-classification", model=scorer._model, tokenizer=scorer._tokenizer, top_k=None,
                function_to_apply="sigmoid")

class Request(BaseModel):
    text: str

app = FastAPI()

@app.post("/classify")
def classify(request: Request):
    return pipe(request.text)

listening = listen("127.0.0.1", 0, free_port="0")

class Server(uvicorn.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets)
        print(f"{address_of('127.0.0.1', listening)} ready", flush=True)

Server(uvicorn.Config(app, log_level="error", access_log=False)).run(sockets=[listening])
"""
ALONE = """
import json, sys
from rewardlm.judges.evaluate import measure_speed
from rewardlm.scoring.load import load_scorer

print(json.dumps(measure_speed(load_scorer(sys.argv[1]), seed=int(sys.argv[2]))))
"""


def main() -> None:
    """Time everything in turns and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", default="starter", help="a name or folder as for --scorer")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of judge serve")
    parser.add_argument("--without-peer", action="store_true", help="for a judge that is no sequence classifier")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    texts = texts_of(SPEED_WORDS.split(), 20_000)

    alone: list[float] = []
    rows: dict[str, list[dict[str, float]]] = {"judge serve": [], "pipeline behind FastAPI": []}
    for turn in range(options.rounds):
        done = subprocess.run(
            [sys.executable, "-c", ALONE, options.judge, str(turn)], capture_output=True, text=True, check=True
        )
        alone.append(json.loads(done.stdout.splitlines()[-1])["texts_per_second"])
        with server("-m", "rewardlm", "judge", "serve", options.judge, "--port", "0", *options.set) as (address, _):
            rows["judge serve"].append(load(address, texts, options, turn))
        if not options.without_peer:
            with server("-c", PEER, options.judge) as (address, _):
                rows["pipeline behind FastAPI"].append(load(address, texts, options, turn, peer=True))
    batch = max(alone)
    report = {
        "judge": options.judge,
        "settings": options.set,
        "clients": options.clients,
        "cpus": len(os.sched_getaffinity(0)),
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "alone_in_a_batch": batch,
        "bars": {"share": BAR_SHARE, "p99_ms_at_half_load": BAR_P99_MS},
        "rows": [
            {"what": name, **best, "share_of_batch": best["texts_per_second"] / batch}
            for name, found in rows.items()
            if found
            for best in [max(found, key=lambda one: one["texts_per_second"])]
        ],
    }
    print(json.dumps(report, indent=1)) if options.json else show(report)


def load(
    address: str, texts: list[str], options: argparse.Namespace, turn: int, *, peer: bool = False
) -> dict[str, float]:
    """Both loads on one server."""
    # No two requests of a run have one text: a server must not profit from having seen it.
    fresh = itertools.cycle(texts[turn * 7919 % len(texts) :] + texts[: turn * 7919 % len(texts)])

    def make(_: int) -> bytes:
        text = next(fresh)
        return request_of(address, "/classify" if peer else ANALYZE, {"text": text} if peer else analyze(text))

    async def both() -> dict[str, float]:
        await closed_load(address, make, clients=options.clients, seconds=min(3.0, options.seconds / 2))
        before = time.process_time()
        full = await closed_load(address, make, clients=options.clients, seconds=options.seconds)
        of_clients = (time.process_time() - before) / full.wall
        found = full.to_dict()
        half = await open_load(address, make, rate=found["texts_per_second"] / 2, seconds=options.seconds, seed=turn)
        calm = half.to_dict()
        return {
            **found,
            "clients_cpu": of_clients,
            "half_load_p50_ms": calm["p50_ms"],
            "half_load_p99_ms": calm["p99_ms"],
            "refused": found["refused"] + calm["refused"],
        }

    return asyncio.run(both())


def show(report: dict[str, object]) -> None:
    """The table of docs/serving.md."""
    print(f"{report['judge']}, {report['clients']} clients, {report['cpus']} CPUs, {report['threads']} threads")
    print(f"alone, in batches: {report['alone_in_a_batch']:.0f} texts a second")
    table = Table(box=None)
    for heading in (
        "",
        "texts/s",
        "share",
        "p50 ms",
        "p99 ms",
        "p99 ms at half load",
        "CPUs of the clients",
        "refused",
    ):
        table.add_column(heading, justify="right")
    rows = report["rows"]
    assert isinstance(rows, list)
    for row in rows:
        table.add_row(
            row["what"], f"{row['texts_per_second']:.0f}", f"{row['share_of_batch']:.0%}", f"{row['p50_ms']:.0f}",
            f"{row['p99_ms']:.0f}", f"{row['half_load_p99_ms']:.0f}", f"{row['clients_cpu']:.2f}",
            f"{row['refused']:.0f}",
        )  # fmt: skip
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
