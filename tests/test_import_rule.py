"""Imports run one way, and light commands load nothing heavy: read from the source, then seen in fresh processes."""

from __future__ import annotations

import ast
import functools
import graphlib
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import rewardlm

ROOT = Path(rewardlm.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
# A package may import from itself and from lower rows; side by side in one row is allowed where BESIDE says so.
ROWS = [
    {"__main__"},
    {"cli"},
    {"api"},
    {"experiment", "planner", "publish"},
    {"preflight", "viewing", "serving"},
    {"reporting", "training", "measuring", "judges", "interpreting"},
    {"steering", "labelling"},
    {"scoring", "models", "data"},
    {"fastpath"},
    {"local_page"},
    {"runs", "services", "listening", "packaged", "gguf", "progress", "trunk", "stream", "views", "readouts", "hub"},
    {"config"},
    {"types", "errors", "disk", "stats", "formats", "in_force", "markdown", "terminal", "typed"},
]
# The page shows what compare finds: that part of measure needs no torch, as the last tests see. A judge is trained with
# the checkpoints that every training has. RL watches its answers by the rules that the audit will ask about later.
# What is looked into are measured runs, and the page shows what was found, there and of judges, without torch.
BESIDE = {
    ("packaged", "gguf"), ("formats", "stats"), ("disk", "errors"),
    ("models", "data"), ("types", "errors"), ("typed", "types"), ("reporting", "measuring"), ("judges", "training"),
    ("training", "measuring"), ("interpreting", "measuring"), ("reporting", "interpreting"), ("reporting", "judges"),
}  # fmt: skip
HEAVY = {
    "torch", "transformers", "peft", "trl", "accelerate", "datasets", "sentence_transformers", "pydantic", "scipy",
    "sklearn", "plotly", "h5py", "numpy", "pandas", "yaml", "httpx", "jinja2", "fastapi", "uvicorn",
    "prometheus_client",
}  # fmt: skip


@functools.cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf-8"))


def room(parts: tuple[str, ...]) -> str:
    return parts[0].removesuffix(".py") if parts else ""


def imported(file: Path) -> Iterator[tuple[str, int, bool]]:
    """Absolute names of all modules that ``file`` imports, the line, and whether only type checkers see it."""
    tree = parsed(file)
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for child in block.body
        for node in ast.walk(child)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, id(node) in typing_only
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative imports hide where they go"
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "rewardlm" else [module]
            for name in names:
                yield name, node.lineno, id(node) in typing_only


def row_of(name: str) -> int:
    return next(number for number, names in enumerate(ROWS) if name in names)


def test_every_room_is_in_the_rule() -> None:
    rooms = {room(file.relative_to(ROOT).parts) for file in FILES} - {"__init__"}
    assert rooms <= set().union(*ROWS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_run_one_way(file: Path) -> None:
    here = room(file.relative_to(ROOT).parts)
    if here == "__init__":
        return
    wrong = []
    for name, line, _ in imported(file):
        if not name.startswith("rewardlm."):
            continue
        there = name.split(".")[1]
        if there == here or (here, there) in BESIDE:
            continue
        if row_of(there) <= row_of(here):
            wrong.append(f"line {line}: {here} imports {name}")
    assert not wrong, wrong


def test_no_files_import_each_other() -> None:
    """Not even inside a function, or for the type checker alone: neither of two such files can be read by itself."""
    modules = {".".join(("rewardlm", *file.relative_to(ROOT).with_suffix("").parts)): file for file in FILES}
    modules = {name.removesuffix(".__init__"): file for name, file in modules.items()}
    needs: dict[str, set[str]] = {}
    for module, file in modules.items():
        needs[module] = set()
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                # `from package import file` needs the file; `from file import name` does too.
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                names = [name if name in modules else str(node.module) for name in names]
            else:
                continue
            needs[module] |= {name for name in names if name in modules} - {module}
    try:
        list(graphlib.TopologicalSorter(needs).static_order())
    except graphlib.CycleError as error:
        pytest.fail(" needs ".join(reversed(error.args[1])))


def test_no_two_classes_have_one_name() -> None:
    """A noun means one thing; what is private to a file may be called as elsewhere."""
    places: dict[str, list[str]] = {}
    for file in FILES:
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(str(file.relative_to(ROOT)))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def test_judges_load_no_policy_and_objectives_import_torch_alone() -> None:
    for file in (ROOT / "scoring").glob("*.py"):
        assert not [name for name, _, _ in imported(file) if name.startswith("rewardlm.models")], file
    allowed = {"__future__", "torch", "jaxtyping", "dataclasses", "typing", "collections", "collections.abc", "math"}
    names = {name for name, _, _ in imported(ROOT / "training" / "objectives.py")}
    assert names <= allowed, names - allowed


def test_the_fast_path_has_one_door() -> None:
    """So that the package can be deleted: only its own tests, and what times its pieces, see what is inside."""
    door = next(
        {f"rewardlm.fastpath.{name}" for name in ast.literal_eval(node.value)}
        for node in parsed(ROOT / "fastpath" / "__init__.py").body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    tests = Path(__file__).parent
    inside = [ROOT / "fastpath", tests / "fastpath"]
    others = [*FILES, *tests.rglob("*.py"), *(tests.parent / "benchmarks").glob("*.py")]
    others += (tests.parent / "examples").rglob("*.py")
    for file in others:
        if file.name == "pieces.py" or any(folder in file.parents for folder in inside):
            continue
        wrong = []
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.Import):
                wrong += [alias.name for alias in node.names if alias.name.startswith("rewardlm.fastpath.")]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rewardlm.fastpath"):
                names = {f"rewardlm.fastpath.{alias.name}" for alias in node.names} - door
                wrong += [f"{node.module}: {names}"] if node.module != "rewardlm.fastpath" or names else []
        assert not wrong, f"{file} reaches past rewardlm.fastpath: {wrong}"


@pytest.mark.parametrize("part", ["reporting", "cli"])
def test_light_rooms_name_no_torch_at_module_level(part: str) -> None:
    for file in (ROOT / part).rglob("*.py"):
        for node in parsed(file).body:
            for name in ast.walk(node) if isinstance(node, ast.Import | ast.ImportFrom) else ():
                if isinstance(name, ast.Import):
                    assert not {alias.name.split(".")[0] for alias in name.names} & {"torch", "transformers", "peft"}
                elif isinstance(name, ast.ImportFrom):
                    assert (name.module or "").split(".")[0] not in {"torch", "transformers", "peft"}
    if part == "reporting":
        for file in (ROOT / part).rglob("*.py"):
            assert not [name for name, _, _ in imported(file) if name.split(".")[0] == "torch"], file


def loaded_by(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sorted({{m.split('.')[0] for m in sys.modules}}))"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_the_report_never_loads_torch() -> None:
    code = (
        "import rewardlm.reporting.page, rewardlm.reporting.tables, rewardlm.reporting.figures, "
        "rewardlm.reporting.judge_page, rewardlm.reporting.judge_tables, rewardlm.measuring.compare, "
        "rewardlm.reporting.interpretation, rewardlm.reporting.interpretation_tables, rewardlm.viewing.following, "
        "rewardlm.viewing.comparing, rewardlm.viewing.conclude"
    )
    assert not loaded_by(code) & {"torch", "transformers", "peft"}


def test_the_command_line_loads_nothing_heavy() -> None:
    assert not loaded_by("import rewardlm.cli.app") & HEAVY


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["measure", "--help"],
        ["rlaf", "--help"],
        ["compare", "--help"],
        ["judge", "--help"],
        ["judge", "evaluate", "--help"],
        ["judge", "train-pairs", "--help"],
        ["judge", "serve", "--help"],
        ["settings", "judge", "train"],
        ["init", "--help"],
        ["view", "--help"],
    ],
)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        f"sys.argv = ['rewardlm', *{arguments!r}]\nfrom rewardlm.cli.app import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code, end.code"
    )
    # A command's flags are made from its settings: those need pydantic, and reading them yaml.
    group = arguments in (["--help"], ["--version"], ["judge", "--help"])
    light = set() if group else {"pydantic", "yaml"}
    # Typer itself imports pydantic when it parses, where pydantic is installed.
    assert not loaded_by(code) & (HEAVY - {"pydantic"} - light)


@pytest.mark.slow
@pytest.mark.parametrize(
    "module",
    [
        "rewardlm.config",
        "rewardlm.runs",
        "rewardlm.types",
        "rewardlm.experiment",
        "rewardlm.data.prompts",
        "rewardlm.judges.settings",
        "rewardlm.judges.evaluate",
        "rewardlm.judges.listing",
    ],
)
def test_checking_settings_and_reading_runs_need_no_torch(module: str) -> None:
    assert not loaded_by(f"import {module}") & {"torch", "transformers", "peft", "trl", "sentence_transformers"}


def test_every_file_that_is_no_code_is_packed() -> None:
    """What the list in pyproject.toml leaves out would be missing from a wheel alone, where no test looks."""
    patterns = tomllib.loads((ROOT.parents[1] / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    packed = {found for pattern in patterns["package-data"]["rewardlm"] for found in ROOT.glob(pattern)}
    others = {file for file in ROOT.rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc")}
    assert others
    assert {str(file.relative_to(ROOT)) for file in others - packed} == set()
