"""Loads ``judge serve`` for a long time and tells whether it loses answers or memory.

    python benchmarks/serve_soak.py [--judge lexical] [--minutes 20] [--clients 16] [--json]

Clients ask in all four formats and compare every answer with what the judge says directly; others hang up in the
middle, send what is no request, or open connections and say nothing. Ends with 1 if an answer is missing, wrong or
another client's, or if the server's memory grows: its trend after the first fifth of the time must be below 2 % in all.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from dataclasses import asdict, dataclass, field
from urllib.parse import urlsplit

import numpy as np
import psutil
from serve_load import ANALYZE, Line, analyze, request_of, server, texts_of

from rewardlm.judges.evaluate import SPEED_WORDS
from rewardlm.scoring.load import load_scorer
from rewardlm.scoring.scorer import score_texts

MOST_GROWTH = 0.02
# bf16 moves a score by the company that a text has in its batch.
TOLERANCE = 2e-3
NO_REQUESTS = (b"{", b"[" * 50_000, b'{"texts": NaN}', b"\xff\xfe", b'{"texts": ["\\ud800"]}', b"null", b"x" * 10_000)


@dataclass
class Soak:
    """What happened."""

    asked: int = 0
    answered: int = 0
    refused: int = 0
    wrong: int = 0
    lost: list[str] = field(default_factory=list)
    hung_up: int = 0
    nonsense: int = 0
    nonsense_taken: int = 0


def main() -> None:
    """Soak, and end with 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", default="lexical")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    texts = [f"{text}{end}" for text in texts_of(SPEED_WORDS.split(), 600) for end in ("", ", you idiot!", " 😀")]
    direct = load_scorer(options.judge)
    label = direct.labels[0]
    known = {text: one.values[label] for text, one in zip(texts, score_texts(direct, texts), strict=True)}
    found = Soak()
    memory: list[tuple[float, float]] = []
    with server("-m", "rewardlm", "judge", "serve", options.judge, "--port", "0", "body_seconds=2") as (
        address,
        process,
    ):
        asyncio.run(_soak(address, known, label, options, found, psutil.Process(process.pid), memory))
    at, megabytes = np.array(memory).T
    settled = at >= at[-1] / 5
    slope = np.polyfit(at[settled], megabytes[settled], 1)[0] if settled.sum() > 2 else 0.0
    growth = float(slope * at[-1] / megabytes[settled].mean())
    report = {
        "judge": options.judge, "minutes": options.minutes, "clients": options.clients, **asdict(found),
        "requests_per_second": found.answered / (options.minutes * 60),
        "memory_mb": {"first": float(megabytes[0]), "last": float(megabytes[-1]), "most": float(megabytes.max())},
        "growth": growth,
    }  # fmt: skip
    wrong = found.wrong or found.lost or found.nonsense_taken or found.asked != found.answered + found.refused
    report["ok"] = not wrong and (growth < MOST_GROWTH or options.minutes < 2)
    report["lost"] = report["lost"][:5]
    print(
        json.dumps(report, indent=1) if options.json else "\n".join(f"{key}: {value}" for key, value in report.items())
    )
    sys.exit(0 if report["ok"] else 1)


async def _soak(
    address: str,
    known: dict[str, float],
    label: str,
    options: argparse.Namespace,
    found: Soak,
    process: psutil.Process,
    memory: list[tuple[float, float]],
) -> None:
    begun = time.monotonic()
    seconds = options.minutes * 60
    texts = list(known)

    def goes_on() -> bool:
        return time.monotonic() - begun < seconds

    async def client(number: int) -> None:
        rng, line = random.Random(number), Line(address)
        while goes_on():
            chosen = rng.sample(texts, rng.choice((1, 1, 1, 1, 4, 16)))
            path, body, read = rng.choice(_FORMATS)(chosen, f"{number}-{found.asked}", label)
            found.asked += 1
            try:
                status, data = await line.ask(request_of(address, path, body))
            except (ConnectionError, asyncio.IncompleteReadError) as error:
                found.lost.append(f"{path}: {type(error).__name__}")
                line.close()
                continue
            if status == 429:
                found.refused += 1
                await asyncio.sleep(0.1)
                continue
            found.answered += 1
            values = read(json.loads(data)) if status == 200 else None
            right = [known[text] for text in chosen][: len(values) if values else None]
            if values is None or not values or not np.allclose(values, right, atol=TOLERANCE):
                found.wrong += 1
        line.close()

    async def nuisance(number: int) -> None:
        rng = random.Random(-number)
        parts = urlsplit(address)
        while goes_on():
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            kind = rng.randrange(3)
            try:
                if kind == 0:  # hangs up while its texts wait, or are scored
                    writer.write(request_of(address, "/score", {"texts": rng.sample(texts, 8)}))
                    await writer.drain()
                    await asyncio.sleep(rng.random() * 0.05)
                    found.hung_up += 1
                elif kind == 1:  # sends what is no request
                    head = f"POST /score HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Length: "
                    data = rng.choice(NO_REQUESTS)
                    writer.write(head.encode() + f"{len(data)}\r\n\r\n".encode() + data)
                    answer = await reader.readuntil(b"\r\n")
                    found.nonsense += 1
                    found.nonsense_taken += answer.split(b" ")[1][:1] != b"4"
                else:  # says nothing, until it is cut off
                    writer.write(b"POST /sc")
                    await reader.read()
            except (ConnectionError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()
            await asyncio.sleep(rng.random() * 0.1)

    async def watch() -> None:
        while goes_on():
            memory.append((time.monotonic() - begun, process.memory_info().rss / 1e6))
            await asyncio.sleep(min(5.0, seconds / 20))
        memory.append((time.monotonic() - begun, process.memory_info().rss / 1e6))

    nuisances = [nuisance(n) for n in range(1, 5)]
    await asyncio.gather(watch(), *nuisances, *(client(n) for n in range(options.clients)))


def _perspective(texts: list[str], token: str, _label: str) -> tuple[str, object, object]:
    def read(answer: dict) -> list[float]:
        # Another client's answer would have another token.
        assert answer["clientToken"] == token, "an answer went to another client"
        return [answer["attributeScores"]["TOXICITY"]["summaryScore"]["value"]]

    return ANALYZE, analyze(texts[0], token), read


def _moderation(texts: list[str], _token: str, label: str) -> tuple[str, object, object]:
    return (
        "/v1/moderations",
        {"input": texts},
        lambda answer: [one["category_scores"][label] for one in answer["results"]],
    )


def _classify(texts: list[str], _token: str, label: str) -> tuple[str, object, object]:
    return (
        "/classify",
        {"inputs": texts},
        lambda answer: [next(one["score"] for one in row if one["label"] == label) for row in answer],
    )


def _score(texts: list[str], _token: str, _label: str) -> tuple[str, object, object]:
    return "/score", {"texts": texts}, lambda answer: answer["values"]


_FORMATS = (_perspective, _moderation, _classify, _score)

if __name__ == "__main__":
    main()
