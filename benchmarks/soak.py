"""Hours of runs that are disturbed at random, each held against the same run that nobody disturbed.

    python benchmarks/soak.py [--minutes 120] [--seed 0] [--out build/soak] [--write]

Each round takes one command (a measurement, fine-tuning, RL by three algorithms, preference training) on the model
``tiny`` and starts it again and again until it ends. Meanwhile faults are drawn at random: kill -9, SIGTERM, Ctrl-C, a
judge that raises, a judge's server that hangs or is killed, a full disk, a clock that jumps by days, the same command
a second time. One judge is asked over HTTP, from ``rewardlm judge serve``, which lives through all rounds.

A round is right if the run ends with the adapter, records and metrics of the undisturbed one, bit by bit; if every
record is there once; if nothing half is left; and if whatever went wrong was told in one line. Memory is watched in the
undisturbed runs, which are longer, and in the server. Rounds are appended to OUT/rounds.jsonl: the same command goes
on where it was stopped. Ends with 1 if anything was not right. Full disks need root, clocks the library libfaketime:
without these the faults are left out, and that is said.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from page import write_between
from safetensors import safe_open

PAGE = Path("docs/reliability.md")
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
JUDGE = '''"""A judge that raises as long as a file says so."""
from pathlib import Path

def score(texts):
    if Path("trouble").exists():
        raise RuntimeError("the judge fell over")
    rude = ("stupid", "trash", "moron")
    return [0.9 if any(word in text for word in rude) else max(0.05, 0.8 - len(text) / 60) for text in texts]
'''
TRAIN = "--batch-size 4 --learning-rate 0.01 --lora-r 4 --device cpu --dtype float32 --seed 3 "
REWARD = (
    "--prompts starter --reward endpoint,soak_judge:score --witness none --max-new-tokens 6 rewards.max_failed_share=0 "
    "rewards.terms.counter_narrative=0 "
)
# {n} is a size: of the run that is disturbed, and of the longer one whose memory is watched.
COMMANDS = {
    "measure": (
        "measure tiny --prompts starter --samples {n} --max-new-tokens 16 --scorer lexical,soak_judge:score,endpoint "
        "similarity=false counter_narrative=null max_failed_share=0 --dtype float32 --seed 3 batch_tokens=4000",
        (8, 300),
    ),
    "finetune": (
        "finetune tiny --dialogues starter --limit 40 --epochs 999 max_steps={n} checkpoint_every=4 " + TRAIN,
        (60, 1500),
    ),
    "ppo": (
        "rlaf tiny --algorithm ppo --critic own --steps {n} --kl-target 0.5 rewards.terms.similarity=0 "
        + REWARD + TRAIN,
        (30, 600),
    ),
    "grpo": (
        "rlaf tiny --algorithm grpo --samples 4 --steps {n} rewards.terms.similarity=0 " + REWARD + TRAIN,
        (30, 600),
    ),
    "rloo": (
        "rlaf tiny --algorithm rloo --samples 4 minibatches=1 --steps {n} rewards.terms.similarity=0 "
        + REWARD + TRAIN,
        (30, 600),
    ),
    "prefer": (
        "prefer tiny --limit 12 --samples 4 --steps {n} --rounds 4 checkpoint_every=2 pairs.margin=0.01 pairs.topic=0 "
        "pairs.topic_gap=null " + REWARD + TRAIN,
        (24, 400),
    ),
}  # fmt: skip
ENDPOINT = ("kind=moderation", "model=lexical", "timeout_seconds=3")
# What a line of metrics.jsonl says about the machine, not about the run.
OF_THE_MACHINE = {"seconds", "tokens_per_second", "peak_rss_mb", "phase_seconds", "out_of_memory"}
RECORDS = {
    "generations.jsonl": ("id",),
    "scores.jsonl": ("generation_id", "scorer", "label"),
    "quality.jsonl": ("generation_id",),
    "answers.jsonl": ("round", "prompt_id", "sample"),
}
# These end the command; after the others it goes on.
ENDING = ("kill -9", "SIGTERM", "Ctrl-C", "judge raises", "full disk")
OF_JUDGES = ("judge raises", "server hangs", "server killed")
MILD = ("server hangs", "server killed", "clock jumps", "same command twice")
# Seconds that nothing takes even on a busy machine, and by how much memory may grow after a third of a long run.
TOO_LONG, MOST_GROWTH = 600.0, 0.02


@dataclass
class Round:
    """What happened to one disturbed run."""

    number: int
    command: str
    starts: int = 0
    faults: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Server:
    """``judge serve``, started anew at the same port whenever it was killed."""

    def __init__(self, home: Path, port: int) -> None:
        self.home, self.port = home, port
        self.lives: list[list[tuple[float, float]]] = []
        self._begin()

    def _begin(self) -> None:
        with (self.home / "server.log").open("a") as log:
            self.process = psutil.Popen(
                [sys.executable, "-m", "rewardlm", "judge", "serve", "lexical", "--port", str(self.port)],
                cwd=self.home, stdout=log, stderr=log,
            )  # fmt: skip
        self.lives.append([])
        deadline = time.monotonic() + 120
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"judge serve doesn't start: {self.home / 'server.log'}")
            time.sleep(0.2)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def watch(self) -> None:
        """Note its memory."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self.lives[-1].append((time.monotonic(), self.process.memory_info().rss / 1e6))

    def kill(self) -> None:
        """kill -9, and another."""
        self.process.kill()
        self.process.wait()
        self._begin()

    def hang(self, seconds: float) -> None:
        """Connections are taken, and nobody answers."""
        self.process.suspend()
        time.sleep(seconds)
        self.process.resume()

    def stop(self) -> None:
        """SIGTERM, and wait."""
        self.process.terminate()
        self.process.wait(60)


class Soak:
    """All rounds of one call."""

    def __init__(self, out: Path, seed: int, minutes: float, *, again: bool = False) -> None:
        self.out, self.seed, self.minutes, self.again = out.resolve(), seed, minutes, again
        self.home, self.disk = self.out / "home", self.out / "disk"
        for folder in (self.home, self.disk, self.out / "whole", self.out / "said"):
            folder.mkdir(parents=True, exist_ok=True)
        (self.home / "soak_judge.py").write_text(JUDGE)
        (self.home / "trouble").unlink(missing_ok=True)
        self.mounted = self._mount()
        self.faketime = FAKETIME.exists()
        self.faults = [
            one
            for one in (*ENDING, *MILD)
            if (self.mounted or one != "full disk") and (self.faketime or one != "clock jumps")
        ]
        state = self.out / "state.json"
        if not state.exists():
            state.write_text(json.dumps({"seed": seed, "port": _free_port()}))
        held = json.loads(state.read_text())
        if held["seed"] != seed:
            sys.exit(f"{out} is of seed {held['seed']}: give another --out")
        # A run that goes on must find the server at the address in its settings.
        self.server = Server(self.home, held["port"])

    def _mount(self) -> bool:
        subprocess.run(["umount", str(self.disk)], capture_output=True)
        shutil.rmtree(self.disk)
        self.disk.mkdir()
        if shutil.which("mount") is None:
            return False
        mount = ["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", str(self.disk)]
        return subprocess.run(mount, capture_output=True).returncode == 0

    def resize(self, size: int) -> bool:
        """Give the disk so many bytes. Not if more are in use."""
        mount = ["mount", "-o", f"remount,size={size}", str(self.disk)]
        return subprocess.run(mount, capture_output=True).returncode == 0

    def command(self, name: str, long: bool, out: Path) -> list[str]:
        """The arguments of a run."""
        text, sizes = COMMANDS[name]
        service = f"services.endpoint.url=http://127.0.0.1:{self.server.port}/v1 services.endpoint.kind=moderation "
        more = (
            service + "services.endpoint.model=lexical services.endpoint.timeout_seconds=3"
            if "endpoint" in text
            else ""
        )
        return [*text.format(n=sizes[long]).split(), *more.split(), "--out", str(out)]

    def start(self, arguments: list[str], said: Path) -> psutil.Popen:
        """Start one, its clock as the file ``clock`` says."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": self._path()}
        if self.faketime:
            (self.home / "clock").write_text("+0")
            environment |= {
                "LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(self.home / "clock"),
                # A machine whose date is set goes on counting its seconds.
                "FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_CACHE_DURATION": "1",
            }  # fmt: skip
        with said.open("a") as file:
            return psutil.Popen(
                [sys.executable, "-m", "rewardlm", *arguments],
                cwd=self.home, env=environment, stdout=subprocess.DEVNULL, stderr=file, start_new_session=True,
            )  # fmt: skip

    def _path(self) -> str:
        return os.pathsep.join(filter(None, [str(self.home), os.environ.get("PYTHONPATH", "")]))

    def whole(self, name: str, long: bool = False) -> tuple[Path, dict[str, float]]:
        """The undisturbed run, made the first time, and how long it took to begin and to end, and its memory."""
        out = self.out / "whole" / (f"{name}-long" if long else name)
        notes = out.with_suffix(".json")
        if not notes.exists():
            shutil.rmtree(out, ignore_errors=True)
            begun, memory, first = time.monotonic(), [], 0.0
            process = self.start(self.command(name, long, out), out.with_suffix(".log"))
            while process.poll() is None:
                with contextlib.suppress(psutil.NoSuchProcess):
                    memory.append((time.monotonic() - begun, process.memory_info().rss / 1e6))
                if not first and out.exists():
                    first = time.monotonic() - begun
                self.server.watch()
                time.sleep(0.25)
            if process.returncode:
                sys.exit(f"{name} fails without a fault: {out.with_suffix('.log')}")
            found = {"begins": first, "ends": time.monotonic() - begun, **_growth(memory)}
            notes.write_text(json.dumps(found))
        return out, json.loads(notes.read_text())

    def round(self, number: int) -> Round:
        """One run, disturbed until it has ended, and compared."""
        rng = random.Random(f"{self.seed} {number}")
        name = rng.choice(sorted(COMMANDS))
        whole, took = self.whole(name)
        found, begun = Round(number, name), time.monotonic()
        out, said = self.disk / "run", self.out / "said" / f"{number:04d}.log"
        shutil.rmtree(out, ignore_errors=True)
        said.unlink(missing_ok=True)
        left = min(12, 1 + int(rng.expovariate(1 / 4)))
        faults = [one for one in self.faults if name != "finetune" or one not in OF_JUDGES]
        while True:
            found.starts += 1
            before = said.stat().st_size if said.exists() else 0
            process = self.start(self.command(name, False, out), said)
            met, waited = [], 0.0
            while left > 0 and not (met and met[-1] in ENDING):
                fault = rng.choice(faults)
                # Half of a command is imports: most faults come once it has begun.
                begins = took["begins"] * 0.5 if rng.random() < 0.1 else took["begins"]
                at = rng.uniform(max(begins, waited), max(took["ends"], waited + 1))
                left -= 1
                if not self._still_runs(process, at - waited):
                    break
                waited = at
                met.append(fault)
                self._do(fault, process, rng, found)
            found.faults += met
            code = self._end_of(process, found)
            self._undo()
            complaint = said.read_text("utf-8", errors="replace")[before:]
            if "Traceback" in complaint:
                found.wrong.append(f"start {found.starts}, {met}: a traceback")
            if code == 0:
                break
            found.wrong += _badly_ended(met, code, complaint, found.starts)
            if found.starts > 40:
                found.wrong.append("it never ends")
                break
        found.wrong += different(whole, out)
        found.seconds = time.monotonic() - begun
        return found

    def _still_runs(self, process: psutil.Popen, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if process.poll() is not None:
                return False
            self.server.watch()
            time.sleep(min(0.2, max(0.0, deadline - time.monotonic())))
        return process.poll() is None

    def _do(self, fault: str, process: psutil.Popen, rng: random.Random, found: Round) -> None:
        signals = {"kill -9": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "Ctrl-C": signal.SIGINT}
        if fault in signals:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signals[fault])
        elif fault == "judge raises":
            (self.home / "trouble").touch()
        elif fault == "full disk":
            room = rng.randrange(4096, 200_000, 4096)
            # The run writes meanwhile.
            while not self.resize(psutil.disk_usage(str(self.disk)).used + room):
                time.sleep(0.01)
        elif fault == "server hangs":
            self.server.hang(rng.uniform(1, 12))
        elif fault == "server killed":
            self.server.kill()
        elif fault == "clock jumps":
            (self.home / "clock").write_text(rng.choice(("-1d", "-40d", "+1h", "+3d", "+400d")))
        else:
            said = self.out / "said" / f"{found.number:04d}-twice.log"
            before = len(said.read_text("utf-8").splitlines()) if said.exists() else 0
            code = self._end_of(self.start(self.command(found.command, False, self.disk / "run"), said), found)
            lines = said.read_text("utf-8").splitlines()[before:]
            # It may have come when the first had ended; then there is nothing to do.
            if code and not (lines and lines[-1].startswith("error: ")):
                found.wrong.append(f"the same command twice: exit {code}, and no line that says why")
            # A command whose run has finished, though its process hasn't, says no more than its title.
            if code == 0 and len(lines) > 1:
                found.wrong.append("the same command twice at once: both ran")

    def _undo(self) -> None:
        (self.home / "trouble").unlink(missing_ok=True)
        if self.mounted and not self.resize(400_000_000):
            sys.exit(f"{self.disk} can't be made larger again")

    def _end_of(self, process: psutil.Popen, found: Round) -> int:
        if self._still_runs(process, TOO_LONG):
            os.killpg(process.pid, signal.SIGKILL)
            found.wrong.append(f"start {found.starts}: hangs")
        return int(process.wait())

    def run(self) -> Iterator[Round]:
        """Rounds until the time is over; those of an earlier call count."""
        file = self.out / "rounds.jsonl"
        done = [Round(**json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []
        again = [one.number for one in done if one.wrong] if self.again else []
        done = [one for one in done if one.number not in again]
        file.write_text("".join(json.dumps(asdict(one)) + "\n" for one in done))
        yield from done
        number, spent = len(done) + len(again), sum(one.seconds for one in done)
        while again or spent < self.minutes * 60:
            one = self.round(again.pop(0) if again else number)
            with file.open("a") as lines:
                lines.write(json.dumps(asdict(one)) + "\n")
            print(f"{one.number:4d} {one.command:9} {one.starts:2d} starts, {one.seconds:4.0f} s  "
                  f"{', '.join(one.faults) or 'no fault'}  {'; '.join(one.wrong) or 'equal'}", flush=True)  # fmt: skip
            yield one
            number, spent = max(number, one.number + 1), spent + one.seconds

    def close(self) -> None:
        """End the server, and give the disk back."""
        self.server.stop()
        if self.mounted:
            subprocess.run(["umount", str(self.disk)], capture_output=True)


def different(whole: Path, disturbed: Path) -> list[str]:
    """In what a run differs from the one that nobody disturbed; records twice; what is half."""
    found = []
    for name, key in RECORDS.items():
        if (whole / name).exists():
            one, two = (_records(folder / name, key) for folder in (whole, disturbed))
            if two is None or one is None:
                found.append(f"{name}: a record twice, or a line that is none")
            elif one != two:
                found.append(f"{name}: {len(one)} records, now {len(two)}, or others")
    if (whole / "metrics.jsonl").exists():
        one, two = (_metrics(folder / "metrics.jsonl") for folder in (whole, disturbed))
        if one != two:
            steps = [line["step"] for line in two]
            found.append(f"metrics.jsonl: steps {steps[:3]}…{steps[-1:]}, {len(steps)} of {len(one)}, or other numbers")
        one, two = (_tensors(folder / "adapter" / "adapter_model.safetensors") for folder in (whole, disturbed))
        if one != two:
            found.append("the adapter is another")
    if json.loads((disturbed / "run.json").read_text())["status"] != "finished":
        found.append("run.json doesn't say finished")
    found += [f"left behind: {path.relative_to(disturbed)}" for path in disturbed.rglob("*.tmp*")]
    return found


def _records(file: Path, key: tuple[str, ...]) -> dict[tuple, Any] | None:
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    found = {tuple(line[part] for part in key if part in line): line for line in lines}
    return found if len(found) == len(lines) else None


def _metrics(file: Path) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in file.read_text("utf-8").splitlines())
    return [{name: value for name, value in line.items() if name not in OF_THE_MACHINE} for line in lines]


def _tensors(file: Path) -> dict[str, bytes]:
    with safe_open(str(file), "numpy") as opened:
        return {name: opened.get_tensor(name).tobytes() for name in opened.keys()}  # noqa: SIM118


def _badly_ended(met: list[str], code: int, said: str, start: int) -> list[str]:
    """What is wrong with how a start ended that didn't finish."""
    lines = [line for line in said.splitlines() if line.strip()]
    told = bool(lines) and lines[-1].startswith("error: ")
    # A server that comes back too late ends a run as well as a judge that raises.
    right = code == 1 and told and not {"judge raises", "full disk", "server hangs", "server killed"}.isdisjoint(met)
    if "kill -9" in met:
        right |= code == -signal.SIGKILL
    if {"SIGTERM", "Ctrl-C"} & set(met):
        right |= code != 0
    return [] if right else [f"start {start}, {met}: exit {code}, said {lines[-1] if lines else 'nothing'!r}"]


def _growth(memory: list[tuple[float, float]]) -> dict[str, float]:
    """Memory in megabytes, and by how much of it the trend grows from the first third to the last tenth of the time, in
    which a command reads its records once more. A process that has just ended has none.
    """
    at, megabytes = np.array([one for one in memory if one[1] > 0]).T
    settled = (at >= at[-1] / 3) & (at <= at[-1] * 0.9)
    slope = np.polyfit(at[settled], megabytes[settled], 1)[0] if settled.sum() > 2 else 0.0
    growth = float(slope * (at[-1] - at[settled][0]) / megabytes[settled].mean())
    return {"first": float(megabytes[settled][0]), "last": float(megabytes[-1]), "growth": growth}


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def tables(rounds: list[Round], memory: dict[str, dict[str, float]]) -> Iterator[str]:
    """Markdown: what was done to which command, how it ended, and the memory."""
    counts = Counter(fault for one in rounds for fault in one.faults)
    hours = sum(one.seconds for one in rounds) / 3600
    bad = [one for one in rounds if one.wrong]
    yield (
        f"{hours:.1f} hours, {len(rounds)} runs, {sum(one.starts for one in rounds)} starts, {sum(counts.values())} "
        f"faults; {len(rounds) - len(bad)} of {len(rounds)} runs ended as the undisturbed one did, bit by bit."
    )
    yield ""
    yield "| command | runs | starts | " + " | ".join(sorted(counts)) + " | as undisturbed |"
    yield f"|{'---|' * (len(counts) + 4)}"
    for name in COMMANDS:
        mine = [one for one in rounds if one.command == name]
        of_mine = Counter(fault for one in mine for fault in one.faults)
        right = sum(not one.wrong for one in mine)
        yield (
            f"| `{name}` | {len(mine)} | {sum(one.starts for one in mine)} | "
            + " | ".join(str(of_mine[fault]) for fault in sorted(counts))
            + f" | {right} of {len(mine)} |"
        )
    yield ""
    yield "| process | memory after a third of the time | at the end | trend |"
    yield "|---|---|---|---|"
    for name, one in memory.items():
        trend = f"{round(100 * one['growth'], 1) + 0.0:+.1f}".replace("-", "−")
        yield f"| {name} | {one['first']:,.0f} MB | {one['last']:,.0f} MB | {trend} % |"


def main() -> None:
    """Soak, and end with 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120.0, help="of disturbed runs; the undisturbed come on top")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/soak"))
    parser.add_argument("--again", action="store_true", help="do the rounds anew in which something was wrong")
    parser.add_argument("--without-memory", action="store_true", help="no long runs")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/reliability.md")
    options = parser.parse_args()
    soak = Soak(options.out, options.seed, options.minutes, again=options.again)
    left_out = [one for one in (*ENDING, *MILD) if one not in soak.faults]
    if left_out:
        print(f"left out here: {', '.join(left_out)}")
    memory: dict[str, dict[str, float]] = {}
    try:
        rounds = list(soak.run())
        if not options.without_memory:
            memory = {f"`{name}`": soak.whole(name, long=True)[1] for name in COMMANDS}
        life = max(soak.server.lives, key=len)
        if len(life) > 2:
            memory["`judge serve`, its longest life"] = _growth([(at - life[0][0], size) for at, size in life])
    finally:
        soak.close()
    text = "\n".join(tables(rounds, memory))
    print(text)
    for one in rounds:
        for wrong in one.wrong:
            print(f"round {one.number}, {one.command}: {wrong}")
    if options.write:
        write_between("soak", text, PAGE)
    grows = [name for name, one in memory.items() if one["growth"] > MOST_GROWTH]
    sys.exit(1 if grows or any(one.wrong for one in rounds) else 0)


if __name__ == "__main__":
    main()
