"""RewardLM beside its peers and beside the most that the machine could do: ``make bench``.

    python benchmarks/bench.py [--only ppo,grpo,rloo,sft,dpo,pairs,meter,meter8] [--dtypes float32,bfloat16] [--quick] …

For each part the machine is calibrated, then ours and the peer run in turn, A B A B, each in a fresh process with the
same model, prompts, judge and sizes, and the machine is calibrated again. A part's new results replace its old ones in
build/bench/results.json. ``--page`` runs nothing: it writes the tables in docs/performance.md from that file, which
must hold every part beside a peer. The parts ``help`` and ``memory`` have no peer: the seconds of ``rewardlm --help``,
and the meter's peak with 10,000 and 100,000 prompts. ``--quick`` runs fewer answers once each and leaves ``memory``
out, in about ten minutes; its results are in build/bench/quick.json.
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
from statistics import median
from typing import Any

from compared import GROWTH_BAR, HELP_BAR, bars, compare, markdown, tables
from rich.console import Console
from rich.table import Table
from work import Job, Told, environment

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- made by make bench: begin -->", "<!-- made by make bench: end -->"
PARTS = ("ppo", "grpo", "rloo", "sft", "dpo", "pairs", "meter", "meter8")  # beside a peer
ALONE = ("help", "memory")
TRL = {"ppo": "trl-1.12", "grpo": "trl-1.16", "rloo": "trl-1.16", "sft": "trl-1.16", "dpo": "trl-1.16"}


def main() -> None:
    """Run the parts that are asked for, and show them."""
    options = parsed()
    folder = options.build / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    results = options.out or folder / ("quick.json" if options.quick else "results.json")
    if options.page:
        write_page(complete(results))
        return
    jobs = {
        f"{part}/{dtype}": job_of(part, dtype, options, folder)
        for part in options.only
        if part in PARTS
        for dtype in options.dtypes
    }
    known: dict[str, Any] = {}

    def keep(kind: str, name: str, found: dict[str, Any]) -> None:
        # Written after each part, so an interrupt loses only one. Read anew, as another run may have added parts.
        known.update(json.loads(results.read_text()) if results.exists() else {"parts": {}, "alone": {}})
        known[kind][name] = {"date": datetime.now(UTC).date().isoformat(), **found}
        known["machine"] = machine(options)
        results.parent.mkdir(parents=True, exist_ok=True)
        results.write_text(json.dumps(known, indent=1) + "\n")

    if jobs:
        kinds = {"sft": "rows:", "dpo": "pairs:"}
        wanted = sorted({f"{kinds.get(job.what, '')}{job.prompts}" for job in jobs.values()})
        command = [sys.executable, HERE / "prepare.py", options.model, folder, *wanted]
        subprocess.run(command, check=True, env=environment(options.threads))
        before = calibrated(options)
    for name, job in jobs.items():
        found, before = run_part(job, options, before)
        keep("parts", name, found)
    for name in options.only:
        if name in ALONE:
            keep("alone", name, {"help": help_seconds, "memory": meter_memory}[name](options))
    show([known["parts"][name] for name in jobs], [known["alone"][name] for name in options.only if name in ALONE])


def parsed() -> argparse.Namespace:
    """The options, with lists where the flags have commas."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help=f"of {', '.join([*PARTS, *ALONE])}, with commas between")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--model", default="smollm2-135m", help="alias, hub id or folder")
    parser.add_argument("--rounds", type=int, help="how often A B is run (2; quick 1)")
    parser.add_argument("--steps", type=int, help="our training steps that count, in a round (3; quick 1)")
    parser.add_argument("--peer-steps", type=int, default=1)
    parser.add_argument("--warmup", type=int, default=1, help="RL steps before those, on both sides")
    parser.add_argument("--episodes", type=int, help="answers of an RL step (32; quick 16)")
    parser.add_argument(
        "--answers", type=int, help="of the meter at 1 per prompt; at 8, and for pairs, twice as many (128; quick 32)"
    )
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument(
        "--critic", choices=["full", "head"], default="full", help="what TRL's PPO trains of its critic"
    )
    parser.add_argument("--rows", type=int, default=8, help="rows in a step of fine-tuning")
    parser.add_argument("--pairs", type=int, default=16, help="pairs in a step of DPO")
    parser.add_argument(
        "--order",
        choices=["same", "own"],
        default="same",
        help="which rows TRL's fine-tuning has in a batch: the same as ours, of similar length, or as it draws them",
    )
    parser.add_argument(
        "--dpo",
        choices=["same", "own"],
        default="same",
        help="TRL's DPO: with our microbatches and the reference asked once, or with a step's pairs in one microbatch "
        "and the reference asked in each step, as it does by default",
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="CPU seconds instead of the clock's; with --threads 1, on a busy machine",
    )
    parser.add_argument("--no-profile", action="store_true", help="leave out the profiled run")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--build", type=Path, default=ROOT / "build", help="holds trl-1.12 and trl-1.16")
    parser.add_argument("--out", type=Path, help="file of results (build/bench/results.json; quick: quick.json)")
    parser.add_argument("--page", action="store_true", help="only write docs/performance.md from the file of results")
    options = parser.parse_args()
    whole = [*PARTS, "help"] if options.quick else [*PARTS, *ALONE]
    options.only = options.only.split(",") if options.only else whole
    options.dtypes = options.dtypes.split(",")
    unknown = [name for name in options.only if name not in (*PARTS, *ALONE)]
    unknown += [name for name in options.dtypes if name not in ("float32", "bfloat16")]
    if unknown:
        parser.error(
            f"unknown: {', '.join(unknown)}; parts are {', '.join([*PARTS, *ALONE])}, dtypes float32 and bfloat16"
        )
    if options.cpu_time and options.threads > 1:
        parser.error("--cpu-time needs --threads 1: threads that wait for each other count as work")
    options.rounds = options.rounds or (1 if options.quick else 2)
    options.steps = options.steps or (1 if options.quick else 3)
    options.episodes = options.episodes or (16 if options.quick else 32)
    options.answers = options.answers or (32 if options.quick else 128)
    for name in {TRL[part] for part in options.only if part in TRL and not options.page}:
        if not any((options.build / name).glob("trl-*.dist-info")):
            parser.error(f"{options.build / name} holds no TRL: run make bench, which installs it there")
    return options


def job_of(part: str, dtype: str, options: argparse.Namespace, folder: Path) -> Job:
    """Our side's job of a part."""
    prompts, samples = {
        "ppo": (options.episodes, 1),
        "grpo": (options.episodes // 4, 4),
        "rloo": (options.episodes // 4, 4),
        "sft": (options.rows, 1),
        "dpo": (options.pairs, 1),
        "pairs": (options.answers // 4, 8),
        "meter": (options.answers, 1),
        "meter8": (options.answers // 4, 8),
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
        order=options.order,
        dpo=options.dpo,
        **({"epochs": 1, "minibatches": 1} if part in ("sft", "dpo") else {}),
    )


def run_part(job: Job, options: argparse.Namespace, before: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run A B A B, calibrate, and run ours once more under a profiler. Returns the results and that calibration.

    ``before`` is the calibration after the previous part.
    """
    # Every batch of fine-tuning has other lengths, so both sides must run the same steps.
    peer_job = replace(job, side="peer", steps=job.steps if job.what in ("sft", "dpo") else options.peer_steps)
    first = options.build / TRL[job.what] if job.what in TRL else None
    rounds = []
    for number in range(options.rounds):
        ours, peer = run(job), run(peer_job, first)
        rounds.append((ours, peer))
        say(f"{job.what} {job.dtype} round {number + 1}: ours {shown(ours)}, peer {shown(peer)}")
    after = calibrated(options)
    if not options.no_profile:
        # It is warmed up too, or the profile would include what the first step sets up.
        rounds[0][0].profile = run(replace(job, profile=True, steps=1, warmup=1)).profile
    found = compare(job, rounds, [before, after])
    return {**found, "job": {**asdict(job), "folder": ""}, "quick": options.quick}, after


def run(job: Job, first: Path | None = None) -> Told:
    """Run one job in a fresh process."""
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
    """Calibrate in both dtypes: the judge may compute in bfloat16 where the policy doesn't."""
    command = [sys.executable, HERE / "calibrate.py", "--threads", str(options.threads)]
    command += ["--cpu-time"] if options.cpu_time else []
    done = subprocess.run(command, env=environment(options.threads), capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    rates = ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in found["rate"].items())
    say(f"reads {found['bandwidth'] / 1e9:.1f} GB/s, multiplies {rates}")
    return found


def help_seconds(options: argparse.Namespace) -> dict[str, Any]:
    """Time ``rewardlm --help`` in fresh processes. The first one warms up the file system and doesn't count."""
    times = []
    for _ in range(6):
        begun = spent(options)
        subprocess.run([sys.executable, "-m", "rewardlm", "--help"], check=True, stdout=subprocess.DEVNULL)
        times.append(spent(options) - begun)
    return {"what": "rewardlm --help, seconds", "found": median(times[1:]), "most": HELP_BAR}


def spent(options: argparse.Namespace) -> float:
    """The clock's seconds, or the CPU seconds of processes that have ended."""
    if not options.cpu_time:
        return time.perf_counter()
    times = os.times()
    return times.children_user + times.children_system


def meter_memory(options: argparse.Namespace) -> dict[str, Any]:
    """How much higher ``measure``'s peak is with ten times the prompts (benchmarks/memory.py)."""
    done = subprocess.run(
        [sys.executable, HERE / "memory.py", "--prompts", "10000", "100000", "--json"],
        env=environment(options.threads),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    peaks = {row["prompts"]: row["peak_mib"] for row in json.loads(done.stdout) if row["command"] == "measure"}
    more = peaks[100_000] - peaks[10_000]
    return {
        "what": "meter's peak, MiB more with 100,000 prompts than with 10,000",
        "found": more,
        "most": GROWTH_BAR,
        "peaks": peaks,
    }


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


def show(parts: list[dict[str, Any]], alone: list[dict[str, Any]]) -> None:
    """Tables and bars for people."""
    console = Console()
    for headings, rows in tables(parts):
        if rows:
            table = Table(*headings)
            for row in rows:
                table.add_row(*(cell.replace("**", "") for cell in row))
            console.print(table)
    for bar in all_bars(parts, alone):
        console.print(f"{'met' if bar['met'] else 'MISSED':6} {sentence(bar)}", highlight=False)


def all_bars(parts: list[dict[str, Any]], alone: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The bars beside a peer, and those that need none."""
    return [bar for part in parts for bar in bars(part)] + [
        {**found, "dtype": None, "bar": f"at most {found['most']:g}", "met": found["found"] <= found["most"]}
        for found in alone
    ]


def sentence(bar: dict[str, Any]) -> str:
    """A bar and what was found."""
    dtype = f" ({bar['dtype']})" if bar["dtype"] else ""
    return f"{bar['what']}{dtype} {bar['found']:.3f}, {bar['bar']}"


def complete(file: Path) -> dict[str, Any]:
    """The results in ``file``. Exits if a part is missing, because the page's tables would lose its rows."""
    known: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"parts": {}, "alone": {}}
    missing = [name for part in PARTS for name in (f"{part}/float32", f"{part}/bfloat16") if name not in known["parts"]]
    if missing:
        sys.exit(f"{file} lacks {', '.join(missing)}: run make bench, or make bench BENCH='--only …', first")
    return known


def write_page(known: dict[str, Any]) -> None:
    """Write the tables between the marks of docs/performance.md."""
    parts = list(known["parts"].values())
    judged = all_bars(parts, list(known["alone"].values()))
    where = known["machine"]
    lines = [
        f"{where['cpu']}, {where['threads']} of {where['cores']} cores, {where['clock']} time, load "
        f"{where['load']:.1f} at the end; {' to '.join(sorted({part['date'] for part in parts}))}.",
        *(markdown(headings, rows) for headings, rows in tables(parts)),
        *(
            f"Bars that are {name}: {'; '.join(sentence(bar) for bar in judged if bar['met'] == met) or 'none'}."
            for name, met in (("met", True), ("missed", False))
        ),
    ]
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n" + "\n\n".join(filter(None, lines)) + f"\n{END}{after}")


if __name__ == "__main__":
    main()
