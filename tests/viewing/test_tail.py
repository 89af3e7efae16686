import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardlm.errors import RunError
from rewardlm.viewing.tail import Tail, record


def test_half_a_line_waits_for_its_end(tmp_path: Path):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1}\n{"st')
    tail = Tail(file)
    assert tail.read() == [b'{"step": 1}']
    assert tail.read() == []
    with open(file, "ab") as growing:
        growing.write(b'ep": 2}\n')
    assert tail.read() == [b'{"step": 2}']


@given(pieces=st.lists(st.binary(max_size=40), max_size=12), look=st.integers(1, 30))
def test_every_whole_line_comes_once_however_the_file_grows(tmp_path_factory, pieces, look):
    file = tmp_path_factory.mktemp("grow") / "metrics.jsonl"
    tail, found = Tail(file), []
    for piece in pieces:
        with open(file, "ab") as growing:
            growing.write(piece)
        found += tail.read(look)
    while lines := tail.read(look):
        found += lines
    assert found == b"".join(pieces).split(b"\n")[:-1]
    assert tail.generation == 0


def test_a_file_that_is_not_there_yet_is_awaited_and_one_that_goes_is_noticed(tmp_path: Path):
    tail = Tail(tmp_path / "metrics.jsonl")
    assert tail.read() == []
    (tmp_path / "metrics.jsonl").write_bytes(b"1\n")
    assert tail.read() == [b"1"]
    assert tail.generation == 0
    (tmp_path / "metrics.jsonl").unlink()
    assert tail.read() == []
    assert tail.generation == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda file: os.truncate(file, 4),
        lambda file: file.write_bytes(b"one\nother\nlines\nthat are longer\n"),
        lambda file: (file.with_suffix(".new").write_bytes(b"one\ntwo\n"), file.with_suffix(".new").rename(file)),
    ],
    ids=["cut", "rewritten in place", "replaced"],
)
def test_a_file_that_was_changed_is_read_anew(tmp_path: Path, change):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b"one\ntwo\n")
    tail = Tail(file)
    assert tail.read() == [b"one", b"two"]
    change(file)
    assert tail.read() == file.read_bytes().split(b"\n")[:-1]
    assert tail.generation == 1


def test_a_resume_that_cuts_half_a_line_changes_nothing(tmp_path: Path):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b"one\nha")
    tail = Tail(file)
    assert tail.read() == [b"one"]
    os.truncate(file, 4)
    with open(file, "ab") as growing:
        growing.write(b"two\n")
    assert tail.read() == [b"two"]
    assert tail.generation == 0


def test_a_line_longer_than_a_look_is_read_whole(tmp_path: Path):
    file = tmp_path / "metrics.jsonl"
    lines = [b"x" * 1000, *[b"short"] * 100]
    file.write_bytes(b"\n".join(lines) + b"\n")
    tail = Tail(file)
    found = tail.read(look=16)
    assert tail.behind
    while tail.behind:
        found += tail.read(look=16)
    assert found == lines


def test_no_link_is_followed(tmp_path: Path):
    (tmp_path / "secret").write_bytes(b"secret\n")
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "secret")
    with pytest.raises(RunError, match="is a link"):
        Tail(tmp_path / "metrics.jsonl").read()


def test_a_pipe_keeps_nobody_waiting(tmp_path: Path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    refused: list[str] = []

    def look():
        try:
            Tail(tmp_path / "metrics.jsonl").read()
        except RunError as error:
            refused.append(str(error))

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    looking.join(timeout=5)
    assert [text for text in refused if "no plain file" in text]


@pytest.mark.parametrize("line", [b"", b"{", b"[1]", b"3", b"\xff\xfe", b"[" * 100_000, b"nul"])
def test_a_line_that_holds_no_record_is_none(line):
    assert record(line) is None
