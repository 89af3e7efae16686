"""Disks that are really full: one line says which file, what is safe and what to do; with more room it goes on.

Each disk is a small file system in memory, which only root can mount: elsewhere these tests skip.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launched import ONE, run
from rewardlm.disk import is_full
from rewardlm.runs import Run
from rewardlm.training.checkpoints import MANIFEST

pytestmark = pytest.mark.slow

Disk = Callable[[str], Path]
TRAIN = ("--max-new-tokens", "4", "--steps", "2", "--batch-size", "4", "checkpoint_every=1")
COMMANDS = {
    "finetune": ("finetune", "tiny", "--dialogues", "starter", "--limit", "12", "max_steps=2", "checkpoint_every=1"),
    "rlaf": ("rlaf", "tiny", "--prompts", "starter", "--reward", "lexical", "--witness", "none", *TRAIN),
    "measure": (
        "measure", "tiny", "--prompts", "starter", "--limit", "8", "--max-new-tokens", "4", "--scorer", "lexical",
        "similarity=false", "counter_narrative=null",
    ),
    "prefer": (
        "prefer", "tiny", "--prompts", "starter", "--limit", "6", "--samples", "4", "--reward", "lexical", "--witness",
        "none", "--max-new-tokens", "4", "--steps", "2", "checkpoint_every=1", "pairs.margin=0.001", "pairs.topic=0",
        "pairs.topic_gap=null", "rewards.terms.counter_narrative=0", "rewards.terms.similarity=0", "retain.coef=0",
    ),
    "judge train": (
        "judge", "train", "--data", "labelled.csv", "--epochs", "1", "evaluations=2", "validation=0.2", "lora.r=4",
    ),
}  # fmt: skip


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A file system of the given size."""
    place = tmp_path / "disk"
    place.mkdir()

    def mounted(size: str) -> Path:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        return place

    if shutil.which("mount") is None:
        pytest.skip("there is no mount")
    yield mounted
    subprocess.run(["umount", str(place)], capture_output=True)


def grown(place: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(place)], check=True)


def command(*arguments: object) -> tuple[int, str]:
    done = run(ONE, [*map(str, arguments)], Path.cwd())
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("finetune", "48k"),  # the adapter, by safetensors
        ("finetune", "300k"),  # the optimizer, by torch
        ("finetune", "700k"),  # the second checkpoint
        ("rlaf", "8k"),
        ("rlaf", "330k"),
        ("measure", "8k"),
        ("prefer", "300k"),
        ("judge train", "300k"),  # the first checkpoint
        ("judge train", "4480k"),  # the judge itself
    ],
)
def test_a_command_says_so_and_goes_on_with_more_room(
    disk: Disk, name: str, size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [f"you are a {'stupid moron' if n % 2 else 'kind friend'} number {n},{n % 2}\n" for n in range(160)]
    Path("labelled.csv").write_text("text,toxicity\n" + "".join(rows))
    out = disk(size) / "run"
    code, said = command(*COMMANDS[name], "--out", out)
    assert code == 1
    last = said.strip().splitlines()[-1]
    assert last.startswith(f"error: {out}")
    assert ": No space left on device; " in last
    assert last.endswith("make room and run the same command again")
    assert "Traceback" not in said
    # Nothing half is left that a later command could take for whole.
    home = out / "checkpoints"
    for file in (path for path in home.rglob("*") if path.suffix in (".safetensors", ".pt")):
        above = [folder for folder in file.parents if folder.is_relative_to(home)]
        assert any((folder / MANIFEST).exists() for folder in above), file
    grown(out.parent, "400m")
    code, said = command(*COMMANDS[name], "--out", out)
    assert code == 0, said
    assert Run.open(out).finished


@pytest.mark.parametrize("name", ["table.csv", "table.parquet", "page.html", "rows.jsonl"])
def test_a_file_that_finds_no_room_is_left_as_it_was(disk: Disk, tmp_path: Path, name: str) -> None:
    table = tmp_path / "answers.csv"
    table.write_text("prompt,response,x\n" + "".join(f"{'ask ' * 40}{n},{'say ' * 80}{n},0.{n}\n" for n in range(60)))
    imported = tmp_path / "run"
    assert command("import", table, "--label", "A", "--out", imported)[0] == 0
    out = disk("8k") / name
    out.write_text("before")
    make = ("report", imported) if name == "page.html" else ("export", imported)
    code, said = command(*make, "--out", out)
    assert code == 1
    assert said.strip().splitlines()[-1].startswith(f"error: {out}: No space left on device; it is as it was")
    assert [path.name for path in out.parent.iterdir()] == [name]
    assert out.read_text() == "before"


def test_a_merged_model_that_finds_no_room_leaves_nothing(disk: Disk, tmp_path: Path) -> None:
    assert command(*COMMANDS["finetune"], "--out", tmp_path / "ft")[0] == 0
    out = disk("200k") / "merged"
    code, said = command("merge", "tiny", "--adapter", tmp_path / "ft", "--out", out)
    assert code == 1
    assert said.strip().splitlines()[-1] == (
        f"error: {out}: No space left on device; model and adapter are as they were: make room and run the same "
        "command again"
    )
    assert not list(out.parent.iterdir())


def test_other_errors_are_not_taken_for_it() -> None:
    one = RuntimeError("could not write")
    one.__cause__ = PermissionError(13, "Permission denied")
    assert not is_full(one)
    # A chain that ends in itself.
    one.__cause__ = one
    assert not is_full(one)
    one.__cause__ = OSError(28, "No space left on device")
    assert is_full(one)
    # What happens while one is handled is another error, and a text that only mentions it is none.
    try:
        try:
            raise OSError(28, "No space left on device")
        except OSError:
            raise ValueError("a bug") from None
    except ValueError as bug:
        found = is_full(bug)
    assert not found
    assert not is_full(KeyError("the judge said: File too large"))
