"""How a file that RewardLM reads is changed at random: its bytes, and what they mean in JSON, YAML, CSV, Parquet and
the like. ``changed`` writes another version of a file in its place; ``fuzz.py`` says what must happen then.
"""

from __future__ import annotations

import csv
import io
import json
import random
import sqlite3
import zipfile
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import yaml

# What JSON can't be asked to write is put in afterwards, in the place of these marks.
_MARK = "\x01raw{}\x01"
RAW = (
    "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" * 5000, "-" + "9" * 400, '"\\ud800"',
    '"\\udfff\\ud800 half"',
    "[" * 3000 + "]" * 3000, '{"a":' * 2000 + "1" + "}" * 2000, "nul", "", "'single'", "0x10", "01", "+1", "1.", "{",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 0.5, 1.5, -0.0, 1e308, 1e-320, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**30,
    "", " ", "0", "1", "0.5", "nan", "inf", "true", "null", "a", "ä\u0301", "\u202eabc", "\0", "a\nb\r\nc\u2028d",
    "\ufeff",
    "\x1b[31mred\x1b[0m", "../../x", "/", "a(b", "a)b", "a,b", "mean(a,b)", "#", "=1+1", "x" * 20_000, "\U0001f600",
    "all",
    [], {}, [[]], [None], [True], [1, "a"], ["a", "a"], [0.5, None], {"a": 1}, {"": None}, [{}], {"a": {"b": []}},
    list(range(300)), ["x"] * 50,
)  # fmt: skip
KEYS = (
    "",
    "id",
    "kind",
    "label",
    "text",
    "prompt",
    "value",
    "unknown",
    "a.b",
    "\0",
    "__class__",
    "1",
    "\u202e",
    "x" * 3000,
)
BYTES = (
    b"\0", b"\xff", b"\xef\xbb\xbf", b"\xc3", b"\xed\xa0\x80", b"\n", b"\r", b"\r\n", b'"', b"'", b",", b";", b"\t",
    b"{", b"}",
    b"[", b"]", b"null", b"NaN", b"-", b"1e999", b"\\ud800", b"\\", b":", b"&a [*a]", b"!!python/object:os.system x",
    b"#",
    b"9" * 5000, b"\xe2\x80\xa8",
)  # fmt: skip


def changed(path: Path, rng: random.Random) -> str:
    """Write another version of ``path`` in its place; returns in words what was done."""
    suffix = path.suffix.lower()
    structural = _STRUCTURAL.get(suffix)
    if structural is not None and rng.random() < 0.75:
        said = [structural(path, rng) for _ in range(rng.choice((1, 1, 1, 2, 4)))]
        return "; ".join(said)
    if suffix not in _BINARY and rng.random() < 0.15:
        return _as_text(path, rng)
    data = path.read_bytes()
    said = []
    for _ in range(rng.choice((1, 1, 2, 5))):
        data, what = _bytes_changed(data, rng)
        said.append(what)
    path.write_bytes(data)
    return "; ".join(said)


def _bytes_changed(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    kind = rng.choice(("flip", "cut", "take out", "double", "insert", "line", "swap", "empty"))
    at = rng.randrange(len(data) + 1)
    long = min(len(data) - at, int(rng.expovariate(1 / 40)) + 1)
    if kind == "empty" and rng.random() < 0.9:
        kind = "flip"
    if kind == "flip" and data:
        at = min(at, len(data) - 1)
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :], f"bit flipped in byte {at}"
    if kind == "cut":
        return data[:at], f"cut off at byte {at}"
    if kind == "take out":
        return data[:at] + data[at + long :], f"{long} bytes taken out at {at}"
    if kind == "double":
        return data[: at + long] + data[at : at + long] + data[at + long :], f"{long} bytes doubled at {at}"
    if kind == "insert":
        new = rng.choice(BYTES)
        return data[:at] + new + data[at:], f"{new[:12]!r} put in at byte {at}"
    if kind == "line":
        lines = data.splitlines(keepends=True)
        if lines:
            row = rng.randrange(len(lines))
            lines[row : row + 1] = rng.choice(([], [lines[row]] * 2, [rng.choice(lines)]))
            return b"".join(lines), f"line {row + 1} gone, doubled or another"
    if kind == "swap":
        other = rng.randrange(len(data) + 1)
        low, high = sorted((at, other))
        return data[high:] + data[low:high] + data[:low], f"turned around at bytes {low} and {high}"
    return b"", "emptied"


def _as_text(path: Path, rng: random.Random) -> str:
    """Another encoding, or other ends of lines."""
    text = path.read_bytes().decode("utf-8", "replace")
    kind = rng.choice(("utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "crlf", "cr", "blank lines"))
    if kind == "crlf":
        data = text.replace("\n", "\r\n").encode()
    elif kind == "cr":
        data = text.replace("\n", "\r").encode()
    elif kind == "blank lines":
        data = text.replace("\n", "\n\n \n").encode()
    else:
        data = text.encode(kind, "replace")
    path.write_bytes(data)
    return f"as {kind}"


# ------------------------------------------------------------------------------------------------- trees: JSON, YAML


def _tree_changed(tree: Any, rng: random.Random, raw: list[str]) -> tuple[Any, str]:
    """One change somewhere in ``tree``, which is changed in place unless it is a scalar. What only text can say is
    noted in ``raw``, and its mark is put into the tree.
    """
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                visit(node[key])

    if isinstance(tree, dict | list):
        visit(tree)
    if not places or rng.random() < 0.01:
        new = rng.choice(VALUES)
        return new, f"the whole is {_short(new)}"
    parent, key = _drawn_place(places, rng)
    kind = rng.choice(("value", "value", "value", "raw", "gone", "double", "key", "other", "more", "twice"))
    if kind == "raw":
        raw.append(rng.choice(RAW))
        parent[key] = _MARK.format(len(raw) - 1)
        return tree, f"{key!r:.40} is {raw[-1][:20]}"
    if kind == "gone":
        del parent[key]
        return tree, f"{key!r:.40} is gone"
    if kind == "double" and isinstance(parent, list):
        parent.insert(rng.randrange(len(parent) + 1), parent[key])
        return tree, f"entry {key} comes twice"
    if kind == "key" and isinstance(parent, dict):
        new = rng.choice(KEYS)
        parent[new] = parent.pop(key)
        return tree, f"{key!r:.40} is called {_short(new)}"
    if kind == "other":
        other, name = rng.choice(places)
        parent[key] = json.loads(json.dumps(other[name]))
        return tree, f"{key!r:.40} is what {name!r:.40} is"
    if kind == "more" and isinstance(parent, dict):
        new = rng.choice(KEYS)
        parent[new] = rng.choice(VALUES)
        return tree, f"{_short(new)} is {_short(parent[new])}, which nobody asked for"
    if kind == "twice" and isinstance(parent, dict):
        raw.append(json.dumps(str(key)) + ": 1, " + json.dumps(str(key)))
        value = parent.pop(key)
        parent[_MARK.format(len(raw) - 1)] = value
        return tree, f"{key!r:.40} is named twice"
    new = rng.choice(VALUES)
    parent[key] = new
    return tree, f"{key!r:.40} is {_short(new)}"


def _drawn_place(places: Sequence[tuple[Any, Any]], rng: random.Random) -> tuple[Any, Any]:
    """By name first, so that a key which is there once is changed as often as one in each of a thousand rows."""
    by_name: dict[Any, list[tuple[Any, Any]]] = {}
    for parent, key in places:
        by_name.setdefault(key if isinstance(parent, dict) else int, []).append((parent, key))
    names = list(by_name)
    return rng.choice(by_name[rng.choice(names)])


def _with_raw(text: str, raw: Sequence[str]) -> str:
    for number, new in enumerate(raw):
        mark = json.dumps(_MARK.format(number))
        text = text.replace(mark, new).replace(mark[1:-1], new)
    return text


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:39] + "…"


def _json(path: Path, rng: random.Random) -> str:
    try:
        tree = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return "already no JSON"
    raw: list[str] = []
    tree, said = _tree_changed(tree, rng, raw)
    path.write_text(_with_raw(json.dumps(tree, ensure_ascii=rng.random() < 0.5), raw), "utf-8", errors="surrogatepass")
    return said


def _jsonl(path: Path, rng: random.Random) -> str:
    lines = path.read_bytes().split(b"\n")
    full = [number for number, line in enumerate(lines) if line.strip()]
    if not full:
        return "already empty"
    row = rng.choice(full)
    try:
        tree = json.loads(lines[row])
    except (ValueError, RecursionError):
        return "already no JSON"
    raw: list[str] = []
    tree, said = _tree_changed(tree, rng, raw)
    lines[row] = _with_raw(json.dumps(tree), raw).encode("utf-8", "surrogatepass")
    path.write_bytes(b"\n".join(lines))
    return f"line {row + 1}: {said}"


def _yaml(path: Path, rng: random.Random) -> str:
    try:
        tree = yaml.safe_load(path.read_text("utf-8"))
    except (ValueError, RecursionError, yaml.YAMLError):
        return "already no YAML"
    raw: list[str] = []
    tree, said = _tree_changed(tree, rng, raw)
    try:
        text = yaml.safe_dump(tree, allow_unicode=True, sort_keys=False)
    except yaml.YAMLError:
        text = json.dumps(tree)
    for number, new in enumerate(raw):
        text = text.replace(json.dumps(_MARK.format(number)), new).replace(f'"\\x01raw{number}\\x01"', new)
    path.write_text(text, "utf-8", errors="surrogatepass")
    return said


# ------------------------------------------------------------------------------------------------------------ tables


def _csv(path: Path, rng: random.Random) -> str:
    try:
        rows = list(csv.reader(io.StringIO(path.read_text("utf-8"))))
    except (ValueError, csv.Error):
        return "already no CSV"
    if not rows or not rows[0]:
        return "already empty"
    row = rng.randrange(len(rows))
    column = rng.randrange(max(1, len(rows[row])))
    kind = rng.choice(("cell", "cell", "more cells", "fewer cells", "column", "header", "line ends"))
    cells = (
        "",
        "NaN",
        "1e999",
        "-1",
        "2",
        "true",
        "a\nb",
        "a\r\nb",
        "a\rb",
        '"',
        '""',
        "x" * 200_000,
        "9" * 5000,
        "=1+1",
        " ",
        "\u2028",
    )
    if kind == "cell" and rows[row]:
        rows[row][column] = rng.choice(cells)
    elif kind == "more cells":
        rows[row] += ["more"] * rng.randrange(1, 4)
    elif kind == "fewer cells":
        del rows[row][column:]
    elif kind == "column":
        rows = [[cell for place, cell in enumerate(cells) if place != column] for cells in rows]
    elif kind == "header":
        rows[0] = [rng.choice((name, "", "id", name.upper(), f" {name}", rng.choice(rows[0]))) for name in rows[0]]
    else:
        rows = [[cell + rng.choice(("", "\n", "\r", "\r\n", "\n\n")) for cell in cells] for cells in rows]
    out = io.StringIO()
    csv.writer(out, lineterminator=rng.choice(("\n", "\r\n", "\n", "\r"))).writerows(rows)
    path.write_bytes(out.getvalue().encode("utf-8", "surrogatepass"))
    return f"line {row + 1}: {kind}"


def _parquet(path: Path, rng: random.Random) -> str:
    try:
        table = pyarrow.parquet.ParquetFile(path).read()
    except (pyarrow.ArrowException, OSError):
        return "already no Parquet"
    if not table.num_columns:
        return "already without columns"
    place = rng.randrange(table.num_columns)
    name = table.column_names[place]
    size = table.num_rows
    kinds: tuple[tuple[str, Any], ...] = (
        ("lists", pyarrow.array([["a", None]] * size)), ("objects", pyarrow.array([{"a": 1}] * size)),
        ("integers", pyarrow.array([2**63] * size, pyarrow.uint64())),
        ("numbers", pyarrow.array([float("nan")] * size)),
        ("nothing", pyarrow.nulls(size)), ("truth", pyarrow.array([True] * size)),
        ("bytes", pyarrow.array([b"\xff\xfe"] * size)),
        ("dates", pyarrow.array([2**62] * size, pyarrow.timestamp("us"))),
        ("durations", pyarrow.array([2**62] * size, pyarrow.duration("s"))),
        ("times", pyarrow.array([1] * size, pyarrow.time64("ns"))),
        ("a dictionary", pyarrow.array(["a"] * size).dictionary_encode()),
        ("half characters", pyarrow.array(["a"] * size)),
        ("infinities", pyarrow.array([float("-inf")] * size)),
        ("empty lists", pyarrow.array([[]] * size, pyarrow.list_(pyarrow.string()))),
        ("maps", pyarrow.array([[("a", 1)]] * size, pyarrow.map_(pyarrow.string(), pyarrow.int64()))),
        ("decimals", pyarrow.array([1] * size, pyarrow.decimal128(38, 0))),
        ("no UTF-8", pyarrow.array([b"\xff"] * size).view(pyarrow.string()) if size else pyarrow.nulls(0)),
    )  # fmt: skip
    kind = rng.choice(("type", "type", "type", "gone", "twice", "fewer", "called", "null"))
    arrays, names = [table.column(place) for place in range(table.num_columns)], list(table.column_names)
    said = kind
    if kind == "type":
        said, arrays[place] = rng.choice(kinds)
    elif kind == "gone":
        del arrays[place], names[place]
    elif kind == "twice":
        arrays.append(arrays[place])
        names.append(name)
    elif kind == "fewer":
        left = rng.randrange(2)
        arrays = [column.slice(0, left) for column in arrays]
    elif kind == "null":
        arrays[place] = (
            pyarrow.concat_arrays([pyarrow.nulls(1, arrays[place].type), *arrays[place].slice(1).chunks])
            if size
            else arrays[place]
        )
    else:
        names[place] = rng.choice(KEYS)
    pyarrow.parquet.write_table(pyarrow.table(arrays, names=names), path)
    return f"column {name!r:.30}: {said}"


# -------------------------------------------------------------------------------------------------- other containers


def _zip(path: Path, rng: random.Random) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError):
        return "already no archive"
    name = rng.choice(list(members))
    member = path.with_name("member.json")
    member.write_bytes(members[name])
    said = _json(member, rng)
    members[name] = member.read_bytes()
    member.unlink()
    if rng.random() < 0.1:
        members.pop(name)
        said = "gone"
    with zipfile.ZipFile(path, "w", rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED))) as archive:
        for one, data in members.items():
            archive.writestr(one, data)
    return f"{name}: {said}"


def _sqlite(path: Path, rng: random.Random) -> str:
    try:
        with closing(sqlite3.connect(path)) as database:
            tables = [one for (one,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            table = rng.choice(tables)
            columns = [one[1] for one in database.execute(f'PRAGMA table_info("{table}")')]
            column = rng.choice(columns)
            kind = rng.choice(("value", "value", "value", "column gone", "table gone", "rows gone"))
            if kind == "value":
                new = rng.choice(
                    (
                        None,
                        0,
                        -1,
                        2**62,
                        0.5,
                        float("inf"),
                        "",
                        "a",
                        "NaN",
                        "{",
                        "[]",
                        "null",
                        '{"a": 1}',
                        b"\xff\0",
                        "x" * 9000,
                    )
                )
                database.execute(
                    f'UPDATE "{table}" SET "{column}" = ? WHERE rowid IN (SELECT rowid FROM "{table}" LIMIT ?)',
                    (new, rng.choice((1, 100))),
                )
            elif kind == "column gone":
                database.execute(f'ALTER TABLE "{table}" RENAME COLUMN "{column}" TO "another"')
            elif kind == "table gone":
                database.execute(f'ALTER TABLE "{table}" RENAME TO "another_table"')
            else:
                database.execute(f'DELETE FROM "{table}"')
            database.commit()
            return f"{table}.{column}: {kind}"
    except (sqlite3.Error, IndexError, OverflowError):
        return "refused by SQLite"


def _safetensors(path: Path, rng: random.Random) -> str:
    """Its header, as JSON; the weights stay."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    try:
        tree = json.loads(data[8 : 8 + size])
    except (ValueError, RecursionError):
        return "already no header"
    raw: list[str] = []
    tree, said = _tree_changed(tree, rng, raw)
    head = _with_raw(json.dumps(tree), raw).encode("utf-8", "surrogatepass")
    long = len(head) if rng.random() < 0.9 else rng.choice((0, 2**31, 2**63, len(data)))
    path.write_bytes(long.to_bytes(8, "little") + head + data[8 + size :])
    return said


def _gguf(path: Path, rng: random.Random) -> str:
    """A number of its head, where counts, lengths and types stand, becomes another."""
    data = bytearray(path.read_bytes())
    at = rng.randrange(0, max(1, min(len(data), 600) - 8))
    wide = rng.choice((1, 4, 8))
    new = rng.choice((0, 1, 2, 255, 2**31, 2**32 - 1, 2**63, 2**64 - 1)) % 2 ** (8 * wide)
    data[at : at + wide] = new.to_bytes(wide, "little")
    path.write_bytes(bytes(data))
    return f"{wide} bytes at {at} are {new}"


_STRUCTURAL: dict[str, Callable[[Path, random.Random], str]] = {
    ".json": _json, ".jsonl": _jsonl, ".ndjson": _jsonl, ".yaml": _yaml, ".csv": _csv, ".tsv": _csv,
    ".parquet": _parquet,
    ".eval": _zip, ".db": _sqlite, ".safetensors": _safetensors, ".gguf": _gguf,
}  # fmt: skip
_BINARY = (".parquet", ".eval", ".db", ".safetensors", ".gguf", ".arrow")
