"""What `make mutants` decides by itself: which mutants are drawn, which were tried, and what is no fault.

mutmut isn't needed here: which mutants there are is its business.
"""

from __future__ import annotations

import json
import sys
import types
from dataclasses import asdict, replace
from pathlib import Path

import mutants
import pytest
from mutants import Equivalent, Fate, Files, Mutant

SIZES = {"a.py": 40, "b.py": 60}
ONE = Mutant("a.py", 3, "half", 7, 7, "    return x / 2", "    return x * 2")


def test_a_sample_is_the_same_each_time_and_none_is_drawn_twice() -> None:
    one, two = mutants.sample(SIZES, [30, 50]), mutants.sample(SIZES, [30, 50])
    assert one == two
    first, second = map(set, one)
    assert (len(first), len(second)) == (30, 50)
    assert not first & second
    assert first | second <= {(name, index) for name, size in SIZES.items() for index in range(size)}
    # The first sample doesn't depend on how many others there are.
    assert mutants.sample(SIZES, [30])[0] == one[0]


def test_a_sample_of_all_are_all() -> None:
    assert mutants.sample(SIZES, [100]) == [[(name, index) for name, size in SIZES.items() for index in range(size)]]


def test_every_mutant_is_as_likely_as_another() -> None:
    """The first half of 10,000 gets half of 5,000 draws, but for five standard deviations of a fair coin."""
    drawn = [one for sample in mutants.sample({"a.py": 10_000}, [1000] * 5) for one in sample]
    assert sum(index < 5000 for _, index in drawn) == pytest.approx(2500, abs=5 * (5000 / 4) ** 0.5)


@pytest.mark.parametrize(
    ("mutated", "wanted"),
    [
        ("a = 1\nb = None\nc = 3\n", (2, 2, "b = 2", "b = None")),
        ("a = 1\nc = 3\n", (2, 2, "b = 2", "")),
        ("a = 1\nb = (\n    None\n)\nc = 3\n", (2, 2, "b = 2", "b = (\n    None\n)")),
        ("a = 0\nb = 2\nc = 0\n", (1, 3, "a = 1\nb = 2\nc = 3", "a = 0\nb = 2\nc = 0")),
    ],
)
def test_which_lines_are_changed(mutated: str, wanted: tuple[int, int, str, str]) -> None:
    assert mutants.changed("a = 1\nb = 2\nc = 3\n", mutated) == wanted


def stored(folder: Path, *results: Fate) -> Path:
    file = folder / "results-0.jsonl"
    file.write_text("".join(json.dumps(asdict(one)) + "\n" for one in results))
    return file


def test_the_last_result_of_a_mutant_counts(tmp_path: Path) -> None:
    first, later = Fate(ONE, None, 1.0, "x"), Fate(ONE, "tests/test_a.py::test", 1.0, "y")
    assert mutants.earlier(stored(tmp_path, first, later)) == {("a.py", 3): later}
    assert mutants.earlier(tmp_path / "none.jsonl") == {}


class FakeModule:
    """The mutants of a module, each of which changes its own line."""

    source = "text"

    def mutant(self, index: int) -> tuple[Mutant, str]:
        return replace(ONE, index=index, first=index), f"text {index}"


class FakeRunner:
    """Each mutant gets two tests, the first of which kills odd ones."""

    def __init__(self, out: Path) -> None:
        self.out, self.tried = out, []
        tests = ["tests/test_a.py::test", "tests/test_b.py::test"]
        self.tests = types.SimpleNamespace(of=lambda mutant: tests, files=Files(out))

    def try_one(self, mutant: Mutant | None, text: str | None, module: str, tests: list[str]):
        if mutant is None:
            return None, 1.0
        assert text == f"text {mutant.index}"
        self.tried.append(mutant.index)
        return tests[0] if mutant.index % 2 else None, 1.0


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(mutants, "MODULES", {"a.py": ("tests/test_a.py",)})
    for file in ("src/a.py", "tests/test_a.py", "tests/test_b.py", "tests/helper.py"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(f"# {file}\n")
    return tmp_path


def tried_by(project: Path, *indices: int) -> tuple[list[Fate], list[int]]:
    runner = FakeRunner(project)
    return mutants.run(0, [("a.py", index) for index in indices], {"a.py": FakeModule()}, runner), runner.tried


def test_a_second_call_goes_on_where_the_first_stopped(project: Path) -> None:
    first, tried = tried_by(project, 2, 3)
    assert tried == [2, 3]
    every, tried = tried_by(project, 2, 3, 5, 8)
    assert tried == [5, 8]
    assert every[:2] == first
    assert [one.killed is not None for one in every] == [False, True, True, False]
    assert tried_by(project, 2, 3, 5, 8) == (every, [])


@pytest.mark.parametrize(
    ("file", "again"),
    [
        ("tests/test_b.py", [2, 8]),  # those that it did not kill
        ("tests/test_a.py", [2, 3, 5, 8]),
        ("tests/helper.py", [2, 3, 5, 8]),
        ("src/a.py", [2, 3, 5, 8]),
        ("tests/test_c.py", []),  # it runs none of their lines
    ],
)
def test_a_result_counts_as_long_as_what_it_rests_on_is_the_same(project: Path, file: str, again: list[int]) -> None:
    tried_by(project, 2, 3, 5, 8)
    (project / file).write_text("# another")
    assert tried_by(project, 2, 3, 5, 8)[1] == again


def test_a_mutant_that_changes_something_else_now_is_tried(project: Path) -> None:
    tried_by(project, 2)
    file = project / "results-0.jsonl"
    file.write_text(file.read_text().replace("x * 2", "x + 2"))
    assert tried_by(project, 2)[1] == [2]
    assert len(file.read_text().splitlines()) == 2


SAME = Equivalent("a.py", "half", "return x  / 2", "return x * 2\n", "why not")


def test_an_equivalent_mutant_is_known_by_its_lines() -> None:
    assert SAME.is_one(ONE)
    for other in ({"module": "b.py"}, {"function": "twice"}, {"before": "return 2"}, {"after": "return x"}):
        assert not SAME.is_one(replace(ONE, **other))


def test_equivalent_mutants_are_not_tried_unless_asked_for(project: Path) -> None:
    for untried, tried in (([SAME], []), ([], [2])):
        runner = FakeRunner(project)
        [result] = mutants.run(0, [("a.py", 2)], {"a.py": FakeModule()}, runner, untried)
        assert (result.killed, runner.tried) == (None, tried)


def test_killed_equivalent_and_survived_are_all() -> None:
    """One that a test kills is no equivalent, whatever the list says."""
    results = [Fate(ONE, "test", 1.0, "now"), Fate(ONE, None, 1.0, "now"), Fate(ONE, "time", 1.0, "now")]
    assert mutants.counted(results, [SAME]) == (2, 1, 0)
    assert mutants.counted(results, []) == (2, 0, 1)


def test_the_table_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutants, "MODULES", {"a.py": (), "b.py": ()})
    results = [Fate(ONE, "test", 1.0, "now"), *(Fate(replace(ONE, module="b.py"), None, 1.0, "now"),) * 2]
    assert list(mutants.table(results, [SAME]))[2:] == [
        "| `a` | 1 | 1 | 0 | 0 |",
        "| `b` | 2 | 0 | 0 | 2 |",
        "| all | 3 | 1 | 0 | 2 |",
    ]


def test_entries_that_are_out_of_date_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("def half(x):\n    return x / 2\n")
    survived, killed = Fate(ONE, None, 1.0, "now"), Fate(ONE, "test_half", 1.0, "now")
    assert list(mutants.out_of_date([SAME], [survived], tmp_path)) == []
    assert "test_half kills" in "".join(mutants.out_of_date([SAME], [killed], tmp_path))
    (tmp_path / "a.py").write_text("def half(x):\n    return 0.5 * x\n")
    assert "has no line 'return x  / 2'" in "".join(mutants.out_of_date([SAME], [], tmp_path))


def test_the_packaged_list_is_up_to_date() -> None:
    known = mutants.equivalents()
    assert list(mutants.out_of_date(known, [])) == []
    assert all(one.module in mutants.MODULES and one.why.strip() for one in known)
    assert len({(one.module, one.function, one.before, one.after) for one in known}) == len(known)


def test_a_module_is_loaded_from_other_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "halved_by_mutants.py").write_text("def half(x):\n    return x / 2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    other = mutants._Changed("halved_by_mutants", tmp_path / "halved_by_mutants.py", "def half(x):\n    return x * 2\n")
    monkeypatch.setattr(sys, "meta_path", [other, *sys.meta_path])
    import halved_by_mutants

    assert halved_by_mutants.half(3) == 6
    assert halved_by_mutants.__file__ == str(tmp_path / "halved_by_mutants.py")
    del sys.modules["halved_by_mutants"]


@pytest.mark.parametrize(
    ("line", "wanted"),
    [(2, {*range(1, 11)}), (3, {3}), (4, {4, 5}), (6, {6, 7, 8, 9}), (8, {6, 7, 8, 9}), (10, {10})],
)
def test_a_line_stands_for_its_statement(tmp_path: Path, line: int, wanted: set[int]) -> None:
    lines = ["def half(x,", "  y=1):", "  for z in x:", "    if (z and", "        y):", "      yield (", "        1,",
             "        'two'", "      )", "    z = 3"]  # fmt: skip
    (tmp_path / "a.py").write_text("\n".join(lines))
    assert mutants.statements(replace(ONE, first=line, last=line), tmp_path) == wanted


def test_the_tests_of_a_mutant_are_those_that_ran_its_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its module's own come first, then quick ones, until it is enough. What a shared fixture ran counts for all that
    may share it.
    """
    monkeypatch.setattr(mutants, "MODULES", {"a.py": ("tests/one/test_c.py", "tests/one/test_a.py")})
    monkeypatch.setattr(mutants, "statements", lambda mutant: {*range(mutant.first, mutant.last + 1)})
    tests = object.__new__(mutants.Tests)
    tests.seconds = {
        "tests/two/test_z.py::test_quick": 0.1,
        "tests/two/test_z.py::test_other": 0.1,
        "tests/one/test_b.py::test_shares": 1.0,
        "tests/one/test_a.py::test_other": 1.0,
        "tests/one/test_a.py::test_own": 1.0,
        "tests/one/test_long.py::test_long": 1000.0,
        "tests/three/test_never.py::test_never": 2000.0,
    }
    tests.lines = {"a.py": {"7": ["tests/one/test_a.py::test_own", "tests/one/test_b.py", "tests/two",
                                  "tests/one/test_long.py::test_long", "tests/three/test_never.py::test_never"],
                            "8": ["tests/one/test_a.py::test_other"]}}  # fmt: skip
    assert tests.of(ONE) == [
        "tests/one/test_a.py::test_own",
        "tests/two/test_z.py::test_quick",
        "tests/two/test_z.py::test_other",
        "tests/one/test_b.py::test_shares",
        "tests/one/test_long.py::test_long",
    ]
    assert tests.of(replace(ONE, first=8, last=8)) == ["tests/one/test_a.py::test_other"]
    # A line that runs when the module is loaded: any test of it may notice.
    assert tests.of(replace(ONE, function="-", first=1, last=1))[:2] == [
        "tests/one/test_a.py::test_other",
        "tests/one/test_a.py::test_own",
    ]
