"""A hub that can't be reached is told at once, and what is in the cache is taken without asking."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fake_hub import FakeHub
from rewardlm import hub
from rewardlm.data.files import hub_rows
from rewardlm.errors import DataError, ModelError, ScorerError
from rewardlm.models.names import check_model
from rewardlm.scoring.load import check_judges

WORDS = {"what": "the model me/mini", "instead": "a folder", "error": ModelError}


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """As if nobody had said anything of the hub; its cache is empty."""
    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGINGFACE_", "TRANSFORMERS_OFFLINE")) or "proxy" in name.lower():
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(hub, "_known", {})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # read when it was imported
    return tmp_path / "hf"


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of nobody, as $HF_ENDPOINT."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{one.getsockname()[1]}"
    monkeypatch.setenv("HF_ENDPOINT", address)
    return address


def cache(home: Path, name: str, *files: str) -> Path:
    snapshot = home / "hub" / name / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (home / "hub" / name / "refs").mkdir()
    (home / "hub" / name / "refs" / "main").write_text("0" * 40)
    for file in files:
        (snapshot / file).write_text('{"model_type": "llama", "hidden_size": 64}')
    return snapshot


def test_a_hub_that_answers_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeHub() as fake:
        monkeypatch.setenv("HF_ENDPOINT", fake.url)
        assert hub.unreachable() is None
        hub.require("me/mini", **WORDS)
        asked = len(fake.asked)
        hub.require("me/mini", **WORDS)
        assert len(fake.asked) == asked
    # It is gone now, but was there a moment ago.
    assert hub.unreachable() is None
    monkeypatch.setattr(hub, "_REMEMBERED_SECONDS", 0.0)
    assert "can't be reached" in str(hub.unreachable())


def test_nobody_at_the_address_is_told_within_a_second(closed: str) -> None:
    started = time.monotonic()
    with pytest.raises(ModelError) as info:
        hub.require("me/mini", **WORDS)
    assert time.monotonic() - started < 2  # httpx takes a part of it to import
    said = str(info.value)
    assert "\n" not in said
    assert f"can't fetch the model me/mini: the hub, {closed}, can't be reached (Connection refused)" in said
    assert "you can use a folder, or a cache that has it ($HF_HOME)" in said


def test_an_address_that_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_WAIT_SECONDS", 0.2)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{one.getsockname()[1]}")
        started = time.monotonic()
        assert "127.0.0.1" in str(hub.unreachable())
    assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (404, "has no model me/mini, or a private one (then log in: hf auth login)"),
        (401, "has no model me/mini, or a private one (then log in: hf auth login)"),
        (429, "answers 429 when it is asked for me/mini; try again later"),
        (500, "answers 500 when it is asked for me/mini; try again later"),
    ],
)
def test_what_the_hub_does_not_have_is_told_before_anything_is_loaded(
    status: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeHub(status=status) as fake:
        monkeypatch.setenv("HF_ENDPOINT", fake.url)
        with pytest.raises(ModelError) as info:
            check_model("me/mini")
        assert f"can't fetch the model me/mini: the hub, {fake.url}, {said}; what needs no hub: " in str(info.value)
        with pytest.raises(ScorerError, match="can't fetch the judge me/other"):
            check_judges(["me/other"])
        with pytest.raises(DataError, match=r"of me/rows: the hub, .* (has no data set me/rows|answers)"):
            list(hub_rows("me/rows", "train", "of me/rows: {}".format))
    assert [path for _, path, _ in fake.asked] == [
        "/api/models/me/mini", "/api/models/me/other", "/api/datasets/me/rows",
    ]  # fmt: skip


def test_a_gated_model_is_for_those_who_were_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeHub(gated=True) as fake:
        monkeypatch.setenv("HF_ENDPOINT", fake.url)
        with pytest.raises(ModelError, match="the model me/mini is gated: ask its owner for access on its page"):
            check_model("me/mini")
        monkeypatch.setattr(hub, "_known", {})
        monkeypatch.setenv("HF_TOKEN", "hf_friend")
        check_model("me/mini")
    assert fake.asked[-1][1:] == ("/api/models/me/mini/auth-check", "Bearer hf_friend")


def test_a_hub_that_stops_half_way_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """It answered a moment ago, and takes no more calls."""
    with FakeHub() as fake:
        monkeypatch.setenv("HF_ENDPOINT", fake.url)
        assert hub.unreachable() is None
    with pytest.raises(ModelError, match=r"can't be asked for me/mini \(.*refused"):
        check_model("me/mini")


def test_offline_by_wish_nobody_is_asked(monkeypatch: pytest.MonkeyPatch, online: Path) -> None:
    with FakeHub() as fake:
        monkeypatch.setenv("HF_ENDPOINT", fake.url)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
            hub.require("me/mini", **WORDS)
        cache(online, "models--me--mini", "config.json")
        hub.require("me/mini", **WORDS)
    assert fake.asked == []


def test_what_is_in_the_cache_needs_no_hub(online: Path, closed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not hub.is_cached("me/mini")
    (online / "hub" / "models--me--half" / "snapshots" / "x").mkdir(parents=True)
    assert not hub.is_cached("me/half")  # a download that broke off
    cache(online, "models--me--mini", "config.json")
    check_model("me/mini")
    check_judges(["me/mini", "me/mini#toxic"])
    assert not hub.is_cached("me/mini", "dataset")
    cache(online, "datasets--me--mini", "data.jsonl")
    hub.require("me/mini", kind="dataset", what="x", instead="y", error=DataError)
    monkeypatch.setenv("HF_HUB_CACHE", str(online / "elsewhere"))
    assert not hub.is_cached("me/mini")


def test_inside_access_the_libraries_are_offline_only_where_they_must(
    online: Path, closed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    cache(online, "models--me--mini", "config.json")
    with hub.access("me/mini", **WORDS):
        assert constants.is_offline_mode()
    assert not constants.is_offline_mode()
    with pytest.raises(RuntimeError, match="on the way"), hub.access("me/mini", **WORDS):
        raise RuntimeError("on the way")
    assert not constants.is_offline_mode()
    with FakeHub() as fake:
        monkeypatch.setenv("HF_ENDPOINT", fake.url)
        with hub.access("me/mini", **WORDS):
            assert not constants.is_offline_mode()


@pytest.mark.slow
def test_a_model_from_the_cache_is_read_without_a_word_while_the_hub_is_away(online: Path, closed: str) -> None:
    """transformers would try for a minute, and say so in two dozen lines."""
    cache(online, "models--me--mini", "config.json")
    code = "from rewardlm.models.load import configuration; print(configuration('me/mini').hidden_size)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "64\n", done.stderr[-3000:]
    assert "Retrying" not in done.stderr
