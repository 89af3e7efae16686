"""Configurations that would take all memory, all time, or end in a traceback: one line each, at once."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import pytest

from rewardlm.config import MeasureSettings, build, read_yaml
from rewardlm.config.yaml_files import value_of
from rewardlm.errors import ConfigError

# Nine lines that stand for ten to the ninth texts.
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)
WIDE = "a0: &a0 {x: 1, y: 2, z: 3}\n" + "".join(
    f"a{n}: &a{n} {{b: *a{n - 1}, c: *a{n - 1}, d: {{<<: *a{n - 1}}}}}\n" for n in range(1, 30)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "line 5: not YAML .more than 100,000 values, with aliases"),
        (WIDE, "more than 100,000 values"),
        ("x: " + "[" * 20_000, "nested more than 100 levels deep"),
        ("x: " + "{a: " * 20_000 + "1" + "}" * 20_000, "nested more than 100 levels deep"),
        ("x: " + "[" * 300 + "]" * 300, "more than 100 levels"),
        ("- " * 150 + "x", "more than 100 levels"),
        ("x: &x [*x]", "line 1: not YAML .an anchor .&. holds its own alias"),
        ("seed: " + "9" * 5000, "line 1: not YAML .an integer of 5,000 digits"),
        ("model: tiny\nseed: 2001-99-99", "line 2: not YAML .'2001-99-99' is no date"),
        ("seed: 2001-01-01 99:99:99", "line 1: not YAML .*is no date"),
        ("seed: 0b2", "seed"),
        ("seed: !!int abc", "line 1: not YAML .'abc' is no integer"),
        ("seed: !!timestamp foo", "line 1: not YAML .'foo' is no date"),
        ("seed: 18446744073709551616", "'seed' is a huge number: expected one that fits into 64 bits"),
        ("seed: 0x" + "f" * 90, "'seed' is a huge number"),
        ("utility: {seed: " + "9" * 20 + "}", "'utility.seed' is a huge number"),
        ("inside: {x: 1}\nlimit: " + "9" * 20, "'limit' is a huge number"),
        ("samples: 99999999999", "'samples'"),
        ("seed: !!bool abc", "line 1: not YAML .'abc' is no yes or no"),
        ("seed: !!binary é", "line 1: not YAML"),
        ("seed: !!python/object/apply:os.system [ls]", "line 1: not YAML .could not determine a constructor"),
        ("? [a, b]\n: c", "not YAML|expected|unknown"),
        ("? {a: b}\n: c", "not YAML|expected|unknown"),
        ("x: !!set {a, b}", "unknown setting"),
        ("a\0b: c", "not YAML"),
        ("seed: " + "1:" * 3000 + "1", "not YAML|seed"),
        ("x: '" + "y" * 200_001 + "'", "more than 200 kB"),
        ("seed: !!int ''", "line 1: not YAML .'' is no integer"),
        ('seed: "\\UFFFFFFFF"', "not YAML"),
    ],
    ids=lambda value: "".join(character for character in value[:24] if character.isalnum()),
)
def test_a_hostile_file_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "stranger.yaml"
    file.write_text(text)
    tracemalloc.start()
    begun = time.monotonic()
    try:
        with pytest.raises(ConfigError, match=said) as caught:
            build(MeasureSettings, file=file, flags={"model": "tiny"})
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "\n" not in caught.value.summary
    assert most < 150e6
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize(
    "text",
    [
        "2001-99-99",
        "9" * 5000,
        "[" * 20_000,
        "&x [*x]",
        "!!int abc",
        "!!timestamp foo",
        "!!python/name:os.system",
        "{a: &a [*a]}",
        "!!int ''",
        '"\\UFFFFFFFF"',
    ],
)
def test_an_override_that_yaml_cannot_build_is_a_text(text: str) -> None:
    assert value_of(text) == text
    with pytest.raises(ConfigError) as caught:
        build(MeasureSettings, flags={"model": "tiny"}, overrides=[f"seed={text}"])
    assert len(str(caught.value)) < 1000


def test_a_configuration_as_people_write_them_is_read_as_before(tmp_path: Path) -> None:
    file = tmp_path / "e.yaml"
    file.write_text("base: &base {seed: 3, at: 2001-01-01}\nmore:\n  <<: *base\n  rate: 3e-4\n  list: [*base, *base]\n")
    found = read_yaml(file)
    assert found["more"]["seed"] == 3
    assert found["more"]["rate"] == 3e-4
    assert found["more"]["list"][1] == found["base"]
