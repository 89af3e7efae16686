"""RewardLM beside the peers and beside what the machine could do at most: ``make bench``.

    python benchmarks/bench.py [--only ppo,grpo,rloo,meter] [--dtypes float32,bfloat16] [--quick] [--threads N] …

Each part: the machine is calibrated, then ours and the peer run in turn, A B A B, each in a fresh process with the same
model, prompts, judge and sizes, and the machine is calibrated again. Parts that were run replace theirs in the file of
results, and the tables in docs/performance.md are made from that file. ``--quick`` runs half of the answers once each,
in about ten minutes, and writes to build/ alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from compared import bars, compare, markdown, tables
from rich.console import Console
from rich.table import Table
from work import Job, Told, environment

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- made by make bench: begin -->", "<!-- made by make bench: end -->"
PARTS = ("ppo", "grpo", "rloo", "meter", "meter8")
TRL = {"ppo": "trl-1.12", "grpo": "trl-1.16", "rloo": "trl-1.16"}


def main() -> None:
    """Run the parts that are asked for, and show them."""
    options = parsed()
    folder = options.build / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    results = options.out or (folder / "results.json" if options.quick else HERE / "results.json")
    jobs = [job_of(part, dtype, options, folder) for part in options.only for dtype in options.dtypes]
    numbers = sorted({str(job.prompts) for job in jobs})
    subprocess.run(
        [sys.executable, HERE / "prepare.py", options.model, folder, *numbers],
        check=True,
        env=environment(options.threads),
    )
    before = calibrated(options)
    known = json.loads(results.read_text()) if results.exists() else {"parts": {}}
    for part, job in zip([part for part in options.only for _ in options.dtypes], jobs, strict=True):
        found, before = run_part(job, options, before)
        known["parts"][f"{part}/{job.dtype}"] = {"date": datetime.now(UTC).date().isoformat(), **found}
        known["machine"] = machine(options)
        results.parent.mkdir(parents=True, exist_ok=True)
        results.write_text(json.dumps(known, indent=1) + "\n")  # after each part: an interrupt loses one
    show([known["parts"][f"{part}/{dtype}"] for part in options.only for dtype in options.dtypes])
    if not options.quick and options.out is None:
        write_page(known)


def parsed() -> argparse.Namespace:
    """The options, with lists where they are lists."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--model", default="smollm2-135m", help="alias, hub id or folder")
    parser.add_argument("--rounds", type=int, help="A B so many times (2; quick 1)")
    parser.add_argument("--steps", type=int, help="RL steps that count, of ours in a round (3; quick 1)")
    parser.add_argument("--peer-steps", type=int, default=1)
    parser.add_argument("--warmup", type=int, default=1, help="RL steps before those, on both sides")
    parser.add_argument("--episodes", type=int, help="answers of an RL step (32; quick 16)")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument(
        "--critic", choices=["full", "head"], default="full", help="what TRL's PPO trains of its critic"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="CPU seconds instead of the clock's; with --threads 1, on a busy machine",
    )
    parser.add_argument("--no-profile", action="store_true", help="leave out the run that is looked into")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--build", type=Path, default=ROOT / "build", help="holds trl-1.12 and trl-1.16")
    parser.add_argument("--out", type=Path, help="file of results (benchmarks/results.json; quick: in build/bench)")
    options = parser.parse_args()
    options.only, options.dtypes = options.only.split(","), options.dtypes.split(",")
    unknown = [name for name in options.only if name not in PARTS]
    unknown += [name for name in options.dtypes if name not in ("float32", "bfloat16")]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; parts are {', '.join(PARTS)}, dtypes float32 and bfloat16")
    if options.cpu_time and options.threads > 1:
        parser.error("--cpu-time needs --threads 1: threads that wait for each other count as work")
    options.rounds = options.rounds or (1 if options.quick else 2)
    options.steps = options.steps or (1 if options.quick else 3)
    options.episodes = options.episodes or (16 if options.quick else 32)
    for name in {TRL[part] for part in options.only if part in TRL}:
        if not any((options.build / name).glob("trl-*.dist-info")):
            parser.error(f"{options.build / name} holds no TRL: run make bench, which installs it there")
    return options


def job_of(part: str, dtype: str, options: argparse.Namespace, folder: Path) -> Job:
    """Our side's job of a part."""
    prompts, samples = {
        "ppo": (options.episodes, 1),
        "grpo": (options.episodes // 4, 4),
        "rloo": (options.episodes // 4, 4),
        "meter": (48 if options.quick else 128, 1),
        "meter8": (8 if options.quick else 32, 8),
    }[part]
    return Job(
        what=part.removesuffix("8"),
        side="ours",
        dtype=dtype,
        folder=str(folder),
        prompts=prompts,
        samples=samples,
        max_new_tokens=options.max_new_tokens,
        steps=options.steps,
        warmup=options.warmup,
        threads=options.threads,
        cpu_time=options.cpu_time,
        critic=options.critic,
    )


def run_part(job: Job, options: argparse.Namespace, before: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A B A B, then calibrate, then once more ours under a profiler: what is known of the part, and that calibration.

    The calibration ``before`` is the one after the part before.
    """
    peer_job = replace(job, side="peer", steps=options.peer_steps)
    first = options.build / TRL[job.what] if job.what in TRL else None
    rounds = []
    for number in range(options.rounds):
        ours, peer = run(job), run(peer_job, first)
        rounds.append((ours, peer))
        say(f"{job.what} {job.dtype} round {number + 1}: ours {shown(ours)}, peer {shown(peer)}")
    after = calibrated(options)
    if not options.no_profile:
        # A step of its own: what the first step sets up would be a part of it.
        rounds[0][0].profile = run(replace(job, profile=True, steps=1, warmup=1)).profile
    found = compare(job, rounds, [before, after])
    return {**found, "job": {**asdict(job), "folder": ""}, "quick": options.quick}, after


def run(job: Job, first: Path | None = None) -> Told:
    """One job in a fresh process."""
    asked, answered = Path(job.folder) / "job.json", Path(job.folder) / "told.json"
    asked.write_text(json.dumps(asdict(job)))
    answered.unlink(missing_ok=True)
    script = HERE / ("ours.py" if job.side == "ours" else "peers.py")
    done = subprocess.run(
        [sys.executable, script, asked, answered],
        env=environment(job.threads, first),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{job.side} {job.what} {job.dtype} failed with {done.returncode}:\n{done.stderr[-3000:]}")
    return Told(**json.loads(answered.read_text()))


def calibrated(options: argparse.Namespace) -> dict[str, Any]:
    """Both dtypes: the judge computes in bfloat16 also where the policy doesn't."""
    command = [sys.executable, HERE / "calibrate.py", "--threads", str(options.threads)]
    command += ["--cpu-time"] if options.cpu_time else []
    done = subprocess.run(command, env=environment(options.threads), capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    rates = ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in found["rate"].items())
    say(f"reads {found['bandwidth'] / 1e9:.1f} GB/s, multiplies {rates}")
    return found


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """Where it ran."""
    return {
        "cpu": next(
            (
                line.partition(":")[2].strip()
                for line in (Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else "").splitlines()
                if line.startswith("model name")
            ),
            platform.processor(),
        ),
        "cores": os.cpu_count(),
        "threads": options.threads,
        "clock": "CPU" if options.cpu_time else "wall",
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
    }


def shown(told: Told) -> str:
    """Seconds and peak, for a line."""
    return f"{', '.join(f'{seconds:.2f}' for seconds in told.seconds)} s, {told.peak_mib:,.0f} MiB"


def say(sentence: str) -> None:
    """To the terminal, with the time: a part takes minutes."""
    print(f"{time.strftime('%H:%M:%S')} {sentence}", file=sys.stderr, flush=True)


def show(parts: list[dict[str, Any]]) -> None:
    """Tables and bars for people."""
    console = Console()
    for headings, rows in tables(parts):
        if rows:
            table = Table(*headings)
            for row in rows:
                table.add_row(*(cell.replace("**", "") for cell in row))
            console.print(table)
    for bar in (bar for part in parts for bar in bars(part)):
        verdict = "met" if bar["met"] else "MISSED"
        console.print(f"{verdict:6} {bar['what']} ({bar['dtype']}): {bar['found']:.2f}, {bar['bar']}", highlight=False)


def write_page(known: dict[str, Any]) -> None:
    """The tables between the marks of docs/performance.md."""
    parts = list(known["parts"].values())
    missed = [bar for part in parts for bar in bars(part) if not bar["met"]]
    where = known["machine"]
    lines = [
        f"{where['cpu']}, {where['threads']} of {where['cores']} cores, {where['clock']} time, load "
        f"{where['load']:.1f} at the end; {' to '.join(sorted({part['date'] for part in parts}))}.",
        *(markdown(headings, rows) for headings, rows in tables(parts)),
        "Bars that are missed: "
        + ("; ".join(f"{bar['what']} ({bar['dtype']}) {bar['found']:.2f}, {bar['bar']}" for bar in missed) or "none")
        + ".",
    ]
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n" + "\n\n".join(filter(None, lines)) + f"\n{END}{after}")


if __name__ == "__main__":
    main()
