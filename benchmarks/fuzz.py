"""Files that RewardLM reads, changed at random: each reader gives what it should, or one line that says what is wrong.

    python benchmarks/fuzz.py [--minutes 10] [--seed 0] [--only NAME …] [--out build/fuzz] [--write]

``foreign.py`` has the readers with valid files, ``mutations.py`` what is done to these. A case is right if what reads
the file, and what then uses it as a command would, returns or raises an error of RewardLM's own whose message is one
line; within twenty seconds and two more gigabytes of memory. Anything else is a find: the file that caused it is kept
in OUT/finds, with what was done to it and where it was raised. A find counts once however often it comes: it is told
apart by the line of code that raised. Readers take turns; a case depends on the seed, its reader and its number alone.
Ends with 1 if there were finds.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a pool of threads doesn't survive a fork

import argparse
import json
import random
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from foreign import NOTE, READERS, Reader
from mutations import changed
from page import write_between

PAGE = Path("docs/reliability.md")
# Seconds for one case, and bytes that a reader may take besides what is there already.
PATIENCE, MEMORY = 20, 2 * 2**30
# Cases in one process, which dies with them if they kill it.
_BLOCK = 25
_OWN_MISTAKE = 99
# Letters of a message: it may list the settings that there are.
_LONGEST = 2500


class Hang(BaseException):
    """No Exception, so that nobody catches it on the way."""


@dataclass
class Case:
    """What became of a changed file: ``said`` is the error's message; of a find, ``where`` it was raised, too."""

    reader: str
    number: int
    file: str
    done: str
    outcome: str
    said: str = ""
    where: str = ""


def one_case(reader: Reader, seeds: Path, work: Path, seed: int, number: int) -> Case:
    """Change a file of the reader's and read it. ``work`` is emptied, and holds the changed files afterwards."""
    rng = random.Random(f"{seed} {reader.name} {number}")
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(seeds, work / "files")
    files = sorted({path for pattern in reader.changed for path in (work / "files").glob(pattern) if path.is_file()})
    # By its pattern first: one run.json among many lines of records.
    path = rng.choice(files)
    (work / "files" / NOTE).write_text(str(path.relative_to(work / "files")), "utf-8")
    done = changed(path, rng)
    case = Case(reader.name, number, str(path.relative_to(work / "files")), done, "accepted")
    for step in reader.steps:
        outcome, said, where = judged(step, work / "files")
        if outcome == "find":
            case.outcome, case.said, case.where = outcome, said, where
            break
        if outcome == "refused":
            case.outcome, case.said = outcome, said
    return case


def judged(step: object, folder: Path) -> tuple[str, str, str]:
    """accepted, refused or find; the message; and where a find was raised."""
    from rewardlm.errors import RewardLMError

    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(PATIENCE)
    try:
        step(folder)  # type: ignore[operator]
    except RewardLMError as error:
        # Several mistakes are a line each.
        for message in error.problems or (str(error),):
            if not message.strip() or len(message.splitlines()) > 1:
                return "find", f"a message of several lines: {message!r:.400}", _origin(error)
            if len(message) > _LONGEST:
                return "find", f"a message of {len(message)} characters: {message[:200]}", _origin(error)
        return "refused", str(error), ""
    except (Exception, Hang) as error:
        return "find", f"{type(error).__name__}: {error!s:.400}", _origin(error)
    finally:
        signal.alarm(0)
    return "accepted", "", ""


def _too_long(_number: int, _frame: FrameType | None) -> None:
    raise Hang(f"it took more than {PATIENCE} seconds")


def _origin(error: BaseException) -> str:
    """The last line of RewardLM's own that the error came through, and the last one of all."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/rewardlm/" in frame.filename] or list(frames)
    return f"{ours[-1].filename.rpartition('/rewardlm/')[2]}:{ours[-1].lineno} {type(error).__name__}" if ours else ""


class Fuzz:
    """All cases of one call."""

    def __init__(self, out: Path, seed: int, readers: Sequence[Reader]) -> None:
        self.out, self.seed, self.readers = out.resolve(), seed, readers
        (self.out / "finds").mkdir(parents=True, exist_ok=True)
        self.seeds = {reader.name: self._seeds(number, reader) for number, reader in enumerate(readers)}

    def _seeds(self, number: int, reader: Reader) -> Path:
        folder = self.out / "seeds" / "".join(letter if letter.isalnum() else "-" for letter in reader.name)
        if not folder.exists():
            half = folder.with_name("half")
            shutil.rmtree(half, ignore_errors=True)
            half.mkdir(parents=True)
            runs = self.out / "runs"
            runs.mkdir(exist_ok=True)
            reader.make(half, runs)
            half.rename(folder)
        for step in reader.steps:
            # What nobody changed must be read, or the cases say nothing.
            work = self.out / "valid"
            for file in sorted({path for pattern in reader.changed for path in folder.glob(pattern) if path.is_file()}):
                shutil.rmtree(work, ignore_errors=True)
                shutil.copytree(folder, work)
                (work / NOTE).write_text(str(file.relative_to(folder)), "utf-8")
                outcome, said, where = judged(step, work)
                if outcome == "find" or (outcome == "refused" and not reader.only_some):
                    sys.exit(f"{reader.name}: {file.name} as it was made is not read: {said} ({where})")
                if reader.heavy:
                    break
        return folder

    def run(self, minutes: float) -> Iterator[Case]:
        """Blocks of cases, the readers in turn."""
        end = time.monotonic() + 60 * minutes
        begun = dict.fromkeys((reader.name for reader in self.readers), 0)
        spent = dict.fromkeys(begun, 0.0)
        while time.monotonic() < end:
            # Who has had the least time comes next, so that slow ones don't take it all.
            reader = min(self.readers, key=lambda one: spent[one.name])
            at = time.monotonic()
            cases = self._block(reader, begun[reader.name], min(end, at + 10))
            begun[reader.name] += len(cases)
            spent[reader.name] += time.monotonic() - at
            yield from cases

    def _block(self, reader: Reader, first: int, end: float) -> list[Case]:
        """Some cases in a process of their own."""
        told = self.out / "told.jsonl"
        told.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            try:
                self._work(reader, first, end, told)
            except BaseException:
                (self.out / "own-mistake.txt").write_text(traceback.format_exc(), "utf-8")
                os._exit(_OWN_MISTAKE)
        status = _ended(child, told)
        lines = told.read_text("utf-8").splitlines() if told.exists() else []
        cases = [Case(**json.loads(line)) for line in lines if not line.startswith("begun ")]
        if os.waitstatus_to_exitcode(status) == _OWN_MISTAKE:
            sys.exit((self.out / "own-mistake.txt").read_text("utf-8"))
        if status != 0:
            dead = Case(
                reader.name, first + len(cases), "?", "?", "find", f"the process died ({status})", "a dead process"
            )
            cases.append(dead)
            self._keep(dead, self.out / "work")
        return cases

    def _work(self, reader: Reader, first: int, end: float, told: Path) -> None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
        for number in range(first, first + _BLOCK):
            case = one_case(reader, self.seeds[reader.name], self.out / "work", self.seed, number)
            if case.outcome == "find":
                self._keep(case, self.out / "work")
            with told.open("a") as file:
                file.write(json.dumps(asdict(case)) + "\n")
            if time.monotonic() > end:
                break
        os._exit(0)

    def _keep(self, case: Case, work: Path) -> None:
        """The first files of each find, with what was done."""
        name = "".join(letter if letter.isalnum() else "-" for letter in f"{case.reader} {case.where}")[:120]
        folder = self.out / "finds" / name
        if not folder.exists():
            folder.mkdir()
            (folder / "case.json").write_text(json.dumps(asdict(case), indent=1), "utf-8")
            changed_file = work / "files" / case.file
            if changed_file.is_file():
                shutil.copyfile(changed_file, folder / changed_file.name)


def table(cases: Sequence[Case], readers: Sequence[Reader]) -> Iterator[str]:
    """Markdown: what was read how often, and how it went."""
    counts = Counter((case.reader, case.outcome) for case in cases)
    distinct = {(case.reader, case.where) for case in cases if case.outcome == "find"}
    whole = Counter(case.outcome for case in cases)
    yield (
        f"{len(cases):,} cases: {whole['accepted']:,} files accepted, {whole['refused']:,} refused in one line, "
        f"{len(distinct)} finds ({whole['find']:,} cases)."
    )
    yield ""
    yield "| reader | cases | accepted | refused | finds |"
    yield "|---|---|---|---|---|"
    for reader in readers:
        of_reader = [counts[reader.name, outcome] for outcome in ("accepted", "refused")]
        finds = sum(name == reader.name for name, _ in distinct)
        yield f"| {reader.name} | {sum(counts[reader.name, one] for one in ('accepted', 'refused', 'find')):,} | " + (
            f"{of_reader[0]:,} | {of_reader[1]:,} | {finds} |"
        )


def _ended(child: int, told: Path) -> int:
    """How a process ended; it is killed if it hangs where not even the alarm of ``one_case`` reaches it."""
    while True:
        begun = time.monotonic()
        size = told.stat().st_size if told.exists() else 0
        while time.monotonic() - begun < 3 * PATIENCE:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return status
            time.sleep(0.02)
        if (told.stat().st_size if told.exists() else 0) == size:
            os.kill(child, signal.SIGKILL)
            return os.waitpid(child, 0)[1]


def main() -> None:
    """Fuzz, and end with 1 where something was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[], help="readers whose names hold one of these words")
    parser.add_argument("--case", type=int, help="read one case of the reader --only again, and show what happens")
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"))
    parser.add_argument("--write", action="store_true", help="write the table into docs/reliability.md")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    readers = [one for one in READERS if not options.only or any(word in one.name for word in options.only)]
    fuzz = Fuzz(options.out, options.seed, readers)
    if options.case is not None:
        case = one_case(readers[0], fuzz.seeds[readers[0].name], fuzz.out / "work", options.seed, options.case)
        print(json.dumps(asdict(case), indent=1))
        for step in readers[0].steps:
            step(fuzz.out / "work" / "files")
        return
    cases, seen = [], set()
    for case in fuzz.run(options.minutes):
        cases.append(case)
        if case.outcome == "find" and (case.reader, case.where) not in seen:
            seen.add((case.reader, case.where))
            print(f"{case.reader} {case.number}, {case.file}: {case.done}: {case.said} ({case.where})", flush=True)
    text = "\n".join(table(cases, readers))
    print(text)
    (fuzz.out / "cases.jsonl").write_text("".join(json.dumps(asdict(case)) + "\n" for case in cases), "utf-8")
    if options.write:
        write_between("fuzz", text, PAGE)
    sys.exit(1 if seen else 0)


if __name__ == "__main__":
    main()
