"""Do the tests notice faults in the code? Faults are made in the modules that compute every number, one at a time.

    python benchmarks/mutants.py [--samples 300 100] [--out build/mutants] [--equivalent] [--write]

The library mutmut says which faults (mutants) there are: another operator, another number, an argument left out, None
instead of a value, another text. All count that it knows of in ``MODULES``, those in messages too, and none outside of
functions is left out. A simple random sample is drawn from all of them, with seed 0; the next one, with seed 1, from
the rest, and so on.

A mutant is killed if a test fails or hangs. Which tests run is measured, not guessed: coverage runs the fast tests of
``TESTS`` once and writes down which test ran which line, in the test itself or in a fixture that it shares with others.
A mutant then gets all the tests that ran its lines, those of its module's own test files and quick ones first, for
``ENOUGH`` seconds; tests that would come later are left out, so the count is on the low side.

Nothing on disk is changed. Each mutant is a process, forked from one that has loaded torch and the like, which loads
the changed text in the place of the module's own. Results are appended to OUT/results-SEED.jsonl, and the same command
goes on where it was stopped. A result counts as long as the code and the tests that it rests on are the same: for a
mutant that was killed, the file of the test that killed it; for one that survived, all that were run.

Some mutants are no faults: no test can tell them from the code. benchmarks/mutants_equivalent.yaml lists these, with
the reason. These are tried only with ``--equivalent``. The share is that of the killed among the others. Ends with 1 if
it is under ``LEAST`` in a sample, or if an entry of that list is out of date.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import gc
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import pytest
import yaml
from page import ROOT, write_between

PAGE = ROOT / "docs/reliability.md"
EQUIVALENT = ROOT / "benchmarks/mutants_equivalent.yaml"
# mutmut, libcst and coverage, which `make mutants` puts here: nothing else needs them.
LIBRARIES = ROOT / "build/mutmut"
# Each module, and its own tests in the order in which they are run: the quick ones first.
MODULES = {
    "src/rewardlm/stats.py": ("tests/test_stats_by_hand.py", "tests/test_stats.py"),
    "src/rewardlm/measuring/metrics.py": ("tests/measuring/test_metrics.py",),
    "src/rewardlm/measuring/audit.py": ("tests/measuring/test_audit_messages.py", "tests/measuring/test_audit.py"),
    "src/rewardlm/training/objectives.py": ("tests/training/test_objectives.py",),
    "src/rewardlm/training/advantages.py": ("tests/training/test_advantages.py",),
    "src/rewardlm/training/rewards.py": ("tests/training/test_rewards.py",),
}
# Whose fast tests are run besides. The other folders' tests reach the modules only through whole commands.
TESTS = (
    "tests/test_stats", "tests/measuring", "tests/training", "tests/reporting", "tests/interpreting", "tests/judges",
    "tests/labelling", "tests/test_extending.py",
)  # fmt: skip
# What tests load of others' libraries. All processes begin with these.
LOADED = ("torch", "numpy", "scipy.stats", "scipy.optimize", "pydantic", "hypothesis", "pytest", "transformers", "peft",
          "safetensors.torch", "sklearn.linear_model", "jinja2", "datasets", "accelerate", "trl")  # fmt: skip
# Seconds of tests that a mutant gets, as measured without a fault.
ENOUGH = 40.0
# A mutant that takes so many times as long as its tests do without a fault hangs. Loading them comes on top.
TOO_LONG = 10
LOADING = 60.0
LEAST = 0.9


@dataclass(frozen=True)
class Mutant:
    """The mutant that stands at ``index`` in the list of its module's: what it changes, and where.

    ``before`` and ``after`` are the changed lines, ``first`` and ``last`` the numbers of those in the module.
    """

    module: str
    index: int
    function: str
    first: int
    last: int
    before: str
    after: str


@dataclass(frozen=True)
class Fate:
    """What became of a mutant: ``killed`` by a test, by "time", by "loading", or by nothing, which is None.

    ``rests_on`` is a hash of what it follows from.
    """

    mutant: Mutant
    killed: str | None
    seconds: float
    rests_on: str


@dataclass(frozen=True)
class Equivalent:
    """A mutant that no test can tell from the code, and why."""

    module: str
    function: str
    before: str
    after: str
    why: str

    def is_one(self, mutant: Mutant) -> bool:
        """Whether it is this mutant; spaces don't count."""
        mine, other = (
            (one.module, one.function, " ".join(one.before.split()), " ".join(one.after.split()))
            for one in (self, mutant)
        )
        return mine == other


def equivalents(file: Path = EQUIVALENT) -> list[Equivalent]:
    """The list of those that are no faults."""
    found = yaml.safe_load(file.read_text("utf-8")) or {}
    return [Equivalent(module, **one) for module, entries in found.items() for one in entries]


def sample(sizes: dict[str, int], counts: Sequence[int]) -> list[list[tuple[str, int]]]:
    """(module, index) of mutants: ``counts[seed]`` for each seed, none of them twice; ``sizes`` are the modules'."""
    left = [(module, index) for module, size in sizes.items() for index in range(size)]
    found = []
    for seed, count in enumerate(counts):
        drawn = random.Random(seed).sample(left, count)
        found.append(sorted(drawn, key=lambda one: (list(sizes).index(one[0]), one[1])))
        taken = set(drawn)
        left = [one for one in left if one not in taken]
    return found


def changed(source: str, mutated: str) -> tuple[int, int, str, str]:
    """The first and the last line, from 1, of ``source`` that are others in ``mutated``; and these lines in both."""
    old, new = source.splitlines(), mutated.splitlines()
    blocks = [one for one in SequenceMatcher(None, old, new, autojunk=False).get_opcodes() if one[0] != "equal"]
    begin, end, other_begin, other_end = blocks[0][1], blocks[-1][2], blocks[0][3], blocks[-1][4]
    return begin + 1, max(begin + 1, end), "\n".join(old[begin:end]), "\n".join(new[other_begin:other_end])


class MutatedModule:
    """All mutants of a module, and the text that each makes of it."""

    def __init__(self, module: str) -> None:
        from mutmut.mutation.file_mutation import create_mutations

        self.module, self.source = module, (ROOT / module).read_text("utf-8")
        self._tree, self._all, _, _ = create_mutations(module, self.source)

    def __len__(self) -> int:
        return len(self._all)

    def mutant(self, index: int) -> tuple[Mutant, str]:
        """The mutant at ``index``, and the whole text."""
        import libcst

        one = self._all[index]
        text = self._tree.deep_replace(one.original_node, one.mutated_node).code
        inside = one.contained_by_top_level_function
        name = inside.name.value if isinstance(inside, libcst.FunctionDef) else "-"
        return Mutant(self.module, index, name, *changed(self.source, text)), text


def earlier(file: Path) -> dict[tuple[str, int], Fate]:
    """What earlier calls found, the last of each mutant."""
    found = {}
    for line in file.read_text("utf-8").splitlines() if file.exists() else ():
        one = json.loads(line)
        result = Fate(**{**one, "mutant": Mutant(**one["mutant"])})
        found[result.mutant.module, result.mutant.index] = result
    return found


class Files:
    """Hashes of the code and the tests, as they are now."""

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root
        tests = sorted(root.glob("tests/**/*.py"))
        # What every test rests on: the code, and what tests share.
        self.all = self._hash([*sorted(root.glob("src/**/*.py")), *(one for one in tests if one.stem[:5] != "test_")])
        self.tests = [str(one.relative_to(root)) for one in tests if one.stem[:5] == "test_"]

    def of(self, tests: Iterable[str]) -> str:
        """A hash of what these tests show."""
        named = dict.fromkeys(tests)
        files = [self.root / one for one in sorted({test.split("::")[0] for test in named})]
        return hashlib.sha256("\n".join([self.all, self._hash(files), *named]).encode()).hexdigest()[:12]

    def behind(self, killed: str | None, tests: Sequence[str]) -> str:
        """A hash of what a result rests on, where these tests were to be run."""
        return self.of([killed] if killed is not None and "::" in killed else tests)

    def _hash(self, files: Iterable[Path]) -> str:
        every = hashlib.sha256()
        for file in files:
            every.update(f"{file.relative_to(self.root)}\n".encode() + file.read_bytes())
        return every.hexdigest()


class _Changed(importlib.abc.MetaPathFinder):
    """Loads one module from another text than its file's."""

    def __init__(self, name: str, file: Path, text: str) -> None:
        self.name, self.file, self.text = name, file, text

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.name:
            return None
        text = self.text

        class Loader(importlib.machinery.SourceFileLoader):
            def get_code(self, fullname: str) -> Any:
                return compile(text, self.path, "exec", dont_inherit=True)

        return importlib.util.spec_from_file_location(fullname, self.file, loader=Loader(fullname, str(self.file)))


class _Chosen:
    """A plugin of pytest: these tests alone, in this order of files; it knows the first that failed.

    What Hypothesis tries is the same each time, nothing is kept, and a failure isn't made smaller.
    """

    def __init__(self, tests: Sequence[str] | None) -> None:
        self.tests, self.failed = tests, ""

    def pytest_configure(self) -> None:
        from hypothesis import Phase, settings

        plain = settings(
            settings.get_profile("untimed"), database=None, derandomize=True, phases=(Phase.explicit, Phase.generate)
        )
        settings.register_profile("mutants", plain)
        settings.load_profile("mutants")

    # After tests/conftest.py, which has an order of its own.
    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        if self.tests is not None:
            wanted = set(self.tests)
            files = {test.split("::")[0]: place for place, test in reversed([*enumerate(self.tests)])}
            items[:] = [item for item in items if item.nodeid in wanted]
            items.sort(key=lambda item: files[item.nodeid.split("::")[0]])

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid


class _Watched(_Chosen):
    """A plugin that writes down which lines each test runs, and how long it takes.

    What a shared fixture runs counts for all that may share it: the file, or the folder where it is defined.
    """

    def __init__(self, coverage: Any) -> None:
        super().__init__(None)
        self.coverage, self.stack = coverage, [""]
        self.seconds: dict[str, float] = defaultdict(float)
        self.bad: set[str] = set()

    def _in(self, context: str) -> Iterator[None]:
        self.stack.append(context)
        self.coverage.switch_context(context)
        try:
            return (yield)  # type: ignore[misc]
        finally:
            self.stack.pop()
            self.coverage.switch_context(self.stack[-1])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Iterator[None]:
        return (yield from self._in(item.nodeid))

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Iterator[None]:
        shared = {"function": self.stack[-1], "class": request.node.nodeid, "module": request.node.nodeid}
        return (yield from self._in(shared.get(fixturedef.scope, fixturedef.baseid)))

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] += report.duration
        if report.outcome != "passed":
            self.bad.add(report.nodeid)


def _pytest(paths: Iterable[str], plugin: _Chosen, *more: str) -> int:
    """Run tests in this process; pytest's exit code."""
    return int(pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:xdist", *more, *paths], plugins=[plugin]))


def _forked(work: Callable[[], Any], said: Path, seconds: float) -> tuple[Any, float]:
    """What ``work`` returns in a process of its own, None if it is killed after ``seconds``, and the time it took.

    The process and all that it starts write to ``said`` and end with it; temporary files are deleted.
    """
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        child = os.fork()
        if child == 0:
            os.setsid()
            with said.open("wb") as file:
                for number in (1, 2):
                    os.dup2(file.fileno(), number)
            os.environ["TMPDIR"] = tempfile.tempdir = folder
            code = 1
            try:
                answer.write_text(json.dumps(work()))
                code = 0
            finally:
                sys.stdout.flush()
                os._exit(code)
        found = 0
        while not found and time.monotonic() < begun + seconds:
            time.sleep(0.02)
            found, status = os.waitpid(child, os.WNOHANG)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        if not found:
            os.waitpid(child, 0)
            return None, time.monotonic() - begun
        if os.waitstatus_to_exitcode(status) > 0:
            sys.exit(f"a process of tests failed to say what it found: {said}")
        # One that was killed by a signal has said nothing.
        said_so = json.loads(answer.read_text()) if answer.exists() else [-1, "a signal"]
        return said_so, time.monotonic() - begun


class Tests:
    """Which tests ran which lines: measured once, and again where a test file is another."""

    def __init__(self, out: Path, files: Files) -> None:
        self.files, kept = files, out / "tests.json"
        known = json.loads(kept.read_text()) if kept.exists() else {}
        wanted = {one: files.of([one]) for one in files.tests if one.startswith(TESTS)}
        known = {one: found for one, found in known.items() if found["hash"] == wanted.get(one)}
        new = [one for one in wanted if one not in known]
        if new:
            print(f"which lines are run by which tests of {len(new)} files", flush=True)
            found, _ = _forked(lambda: self._watch(new), out / "tests.log", 7200)
            if found is None:
                sys.exit(f"the tests take too long: {out / 'tests.log'}")
            for one in new:
                known[one] = {"hash": wanted[one], "seconds": {}, "lines": {}}
            for test, seconds in found["seconds"].items():
                known[test.split("::")[0]]["seconds"][test] = seconds
            for module, line, context in found["lines"]:
                for one in new:
                    if context == one or context.startswith(f"{one}::") or one.startswith(f"{context}/"):
                        known[one]["lines"].setdefault(module, {}).setdefault(line, []).append(context)
            kept.write_text(json.dumps(known))
        self.seconds: dict[str, float] = {}
        self.lines: dict[str, dict[str, list[str]]] = {module: {} for module in MODULES}
        for one in wanted:
            self.seconds |= known[one]["seconds"]
            for module, lines in known[one]["lines"].items():
                for line, contexts in lines.items():
                    self.lines[module].setdefault(line, []).extend(contexts)

    @staticmethod
    def _watch(paths: Sequence[str]) -> dict[str, Any]:
        import coverage

        watch = coverage.Coverage(data_file=None, include=[str(ROOT / module) for module in MODULES])
        plugin = _Watched(watch)
        watch.start()
        _pytest(paths, plugin, "-m", "not slow and not browser")
        watch.stop()
        lines = [
            (module, str(line), context)
            for module in MODULES
            for line, contexts in watch.get_data().contexts_by_lineno(str(ROOT / module)).items()
            for context in contexts
            if context
        ]
        # Those that fail or skip without a fault show nothing.
        return {"seconds": {test: s for test, s in plugin.seconds.items() if test not in plugin.bad}, "lines": lines}

    def of(self, mutant: Mutant) -> list[str]:
        """The tests that may notice: those of the module's own files first, then others, quick ones before slow ones.

        Lines outside of functions run when the module is loaded: then any test may, that runs any of its lines.
        """
        lines = self.lines[mutant.module]
        wanted = statements(mutant) if mutant.function != "-" else map(int, lines)
        contexts = {context for line in wanted for context in lines.get(str(line), ())}
        tests = [test for test in self.seconds if test in contexts or contexts & set(_above(test))]
        own = MODULES[mutant.module]

        def place(test: str) -> tuple[int, float]:
            file = test.split("::")[0]
            return own.index(file) if file in own else len(own), self.seconds[test]

        chosen, spent = [], 0.0
        for test in sorted(tests, key=place):
            if spent >= ENOUGH:
                break
            chosen.append(test)
            spent += self.seconds[test]
        return chosen


def statements(mutant: Mutant, root: Path = ROOT) -> set[int]:
    """All lines of the statements that it changes: Python says of a statement of many lines only that it ran some. Of
    one that holds others, these are the lines before the first of them, but of a function all: what its head says is
    seen when it is called.
    """
    found: set[int] = set()
    for node in ast.walk(ast.parse((root / mutant.module).read_text("utf-8"))):
        if isinstance(node, ast.stmt):
            inside, last = getattr(node, "body", None), node.end_lineno or node.lineno
            end = max(node.lineno, inside[0].lineno - 1) if inside else last
            if node.lineno <= mutant.last and end >= mutant.first:
                found |= {*range(node.lineno, (last if isinstance(node, ast.FunctionDef) else end) + 1)}
    return found


def _above(test: str) -> Iterator[str]:
    """The class, the file and the folders of a test."""
    file, *names = test.split("::")
    if len(names) == 2:
        yield f"{file}::{names[0]}"
    yield file
    parts = file.split("/")
    yield from ("/".join(parts[:end]) for end in range(len(parts)))


def attempt(text: str | None, module: str, tests: Sequence[str]) -> list[Any]:
    """Run tests with a module's text replaced, in this process: pytest's exit code, and the first test that failed."""
    if text is not None:
        name = module.removeprefix("src/").removesuffix(".py").replace("/", ".")
        sys.meta_path.insert(0, _Changed(name, ROOT / module, text))
    plugin = _Chosen(tests)
    code = _pytest(dict.fromkeys(test.split("::")[0] for test in tests), plugin, "-x", "--tb=short")
    return [code, plugin.failed]


class Runner:
    """Tries mutants, each in processes of its own."""

    def __init__(self, out: Path, tests: Tests) -> None:
        self.out, self.tests = out, tests

    def try_one(self, mutant: Mutant | None, text: str | None, module: str, tests: Sequence[str]) -> tuple[Any, float]:
        """Run its module's own tests, and the others if these all pass. The test that failed, "time", or None."""
        own = [test for test in tests if test.split("::")[0] in MODULES[module]]
        spent = 0.0
        for part in (own, [test for test in tests if test not in set(own)]):
            if not part:
                continue
            seconds = LOADING + TOO_LONG * sum(self.tests.seconds[test] for test in part)
            said = self.out / "said" / f"{Path(module).stem}-{mutant.index if mutant else 'clean'}.log"
            found, took = _forked(lambda part=part: attempt(text, module, part), said, seconds)
            spent += took
            if found is None:
                return "time", spent
            code, failed = found
            if code in (3, 4, 5):
                sys.exit(f"pytest ended with {code}: {said}")
            if code:
                return failed or "loading", spent
        return None, spent


def table(results: Sequence[Fate], known: Sequence[Equivalent]) -> Iterator[str]:
    """Markdown: what became of a sample."""
    yield "| module | mutants | killed | equivalent | survived |"
    yield "|---|---|---|---|---|"
    for module in MODULES:
        mine = [one for one in results if one.mutant.module == module]
        yield _row(f"`{Path(module).stem}`", mine, known)
    yield _row("all", results, known)


def _row(name: str, results: Sequence[Fate], known: Sequence[Equivalent]) -> str:
    killed, same, survived = counted(results, known)
    return f"| {name} | {len(results)} | {killed} | {same} | {survived} |"


def counted(results: Sequence[Fate], known: Sequence[Equivalent]) -> tuple[int, int, int]:
    """How many were killed, are equivalent, and survived. One that a test kills is not equivalent."""
    killed = sum(one.killed is not None for one in results)
    same = sum(one.killed is None and any(other.is_one(one.mutant) for other in known) for one in results)
    return killed, same, len(results) - killed - same


def out_of_date(known: Sequence[Equivalent], results: Sequence[Fate], root: Path = ROOT) -> Iterator[str]:
    """Entries whose lines are no longer in the module, and those that a test kills."""
    for one in known:
        source = " ".join((root / one.module).read_text("utf-8").split())
        if " ".join(one.before.split()) not in source:
            yield f"{one.module}, {one.function}: it has no line {one.before.strip()!r}"
        for result in results:
            if result.killed is not None and one.is_one(result.mutant):
                yield f"{one.module}, {one.function}: {result.killed} kills {one.after.strip()!r}"


def main() -> None:
    """Try the samples, and end with 1 where too few are killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[300, 100], help="how many, with seed 0, with 1, …")
    parser.add_argument("--out", type=Path, default=ROOT / "build/mutants")
    parser.add_argument("--equivalent", action="store_true", help="try those too that are listed as equivalent")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/reliability.md")
    options = parser.parse_args()
    os.chdir(ROOT)
    options.out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(options.out / "said", ignore_errors=True)
    (options.out / "said").mkdir()
    # At the end: what is installed for the project comes first.
    sys.path.append(str(LIBRARIES))
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": ""}
    for name in LOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()
    runner = Runner(options.out, Tests(options.out, Files()))
    made = {module: MutatedModule(module) for module in MODULES}
    known, parts, every, enough = equivalents(), [], [], True
    for seed, drawn in enumerate(sample({name: len(one) for name, one in made.items()}, options.samples)):
        results = run(seed, drawn, made, runner, () if options.equivalent else known)
        every += results
        killed, same, survived = counted(results, known)
        share = killed / (killed + survived) if killed + survived else 1.0
        enough &= share >= LEAST
        total = sum(map(len, made.values()))
        parts.append(
            f"Seed {seed}: {len(results)} of {total:,} mutants. {killed} of {len(results)} were killed, and "
            f"{same} are equivalent: {100 * share:.1f} % of the other {len(results) - same} were killed.\n\n"
            + "\n".join(table(results, known))
        )
        for one in results:
            if one.killed is None and not any(other.is_one(one.mutant) for other in known):
                mutant = one.mutant
                print(f"survived: {mutant.module}:{mutant.first} {mutant.function}\n{mutant.before}\n→\n{mutant.after}")
    text = "\n\n".join(parts)
    print(text)
    old = list(out_of_date(known, every))
    for line in old:
        print(f"{EQUIVALENT.name}: {line}")
    if options.write:
        write_between("mutants", text, PAGE)
    sys.exit(0 if enough and not old else 1)


def run(
    seed: int,
    drawn: Sequence[tuple[str, int]],
    made: dict[str, MutatedModule],
    runner: Runner,
    untried: Sequence[Equivalent] = (),
) -> list[Fate]:
    """The results of a sample, in its order; those of earlier calls count where nothing that they rest on is new."""
    file, files = runner.out / f"results-{seed}.jsonl", runner.tests.files
    done, found, clean = earlier(file), [], set()
    for number, (module, index) in enumerate(drawn, 1):
        mutant, text = made[module].mutant(index)
        if any(one.is_one(mutant) for one in untried):
            found.append(Fate(mutant, None, 0.0, ""))
            continue
        tests = runner.tests.of(mutant)
        result = done.get((module, index))
        if result is None or result.mutant != mutant or result.rests_on != files.behind(result.killed, tests):
            if module not in clean:
                # Tests that fail where coverage watches aren't run at all. Here, without a fault, none fails either.
                first = [test for test in runner.tests.of(Mutant(module, -1, "-", 0, 0, "", ""))
                         if test.startswith(MODULES[module][0])]  # fmt: skip
                failed, _ = runner.try_one(None, made[module].source, module, first)
                if failed is not None:
                    sys.exit(f"without a fault, {failed} fails: {runner.out / 'said'}")
                clean.add(module)
            killed, seconds = runner.try_one(mutant, text, module, tests)
            result = Fate(mutant, killed, seconds, files.behind(killed, tests))
            with file.open("a") as lines:
                lines.write(json.dumps(asdict(result)) + "\n")
            what = f"survived {len(tests)} tests" if killed is None else f"killed by {killed}"
            print(f"seed {seed}, {number}/{len(drawn)}, {seconds:3.0f} s: {module}:{mutant.first} {what}", flush=True)
        found.append(result)
    return found


if __name__ == "__main__":
    main()
