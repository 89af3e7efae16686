"""Fixtures for every test: where the real data lies that some tests read, and that the project never ships."""

from __future__ import annotations

import gc
import importlib
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import settings

from fake_service import FakeService
from rewardlm.cli.app import RARELY
from rewardlm.config import cache_folder, keys
from rewardlm.config.keys import NAMED

# Nothing is downloaded in tests: what they need is in packages, or made by them. Subprocesses inherit it.
os.environ["HF_HUB_OFFLINE"] = "1"
# No test is a timed one: an example that takes long on a busy machine is no failure.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with many slow tests come first: at the end no process waits long for the other's last file."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_collection_finish() -> None:
    """What all tests share stays until the end: Python needn't look through it for garbage after every few tests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*RARELY)


@pytest.fixture
def hub_in_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the hub answered and had whatever is asked for."""
    for question in ("unreachable", "missing"):
        monkeypatch.setattr(f"rewardlm.hub.{question}", lambda *_: None)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets: $REWARDLM_DATA, else ../shared/data beside the project. Skips without it."""
    set_by_user = os.environ.get("REWARDLM_DATA")
    folder = Path(set_by_user) if set_by_user else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set REWARDLM_DATA to its folder")
    return folder


@pytest.fixture
def written_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], ModuleType]]:
    """(name, text) → the module of that name with that text, in a folder that is also the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    written: list[str] = []

    def write(name: str, text: str) -> ModuleType:
        (tmp_path / f"{name}.py").write_text(text)
        written.append(name)
        return importlib.import_module(name)

    yield write
    for name in written:
        sys.modules.pop(name, None)


def own_cache(folder: Path) -> Path:
    """A cache in which nothing is kept yet but the package's weights, whose conversion takes 20 seconds."""
    folder.mkdir()
    for converted in cache_folder().glob("smollm2-*"):
        (folder / converted.name).symlink_to(converted)
    return folder


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeService]:
    """A server on this machine; nothing of the user's own is read or kept beside it."""
    for judge in ("PERSPECTIVE_URL", "ENDPOINT_URL", "ENDPOINT_KIND", "ENDPOINT_MODEL"):
        monkeypatch.delenv(f"REWARDLM_{judge}", raising=False)
    for key in ("PERSPECTIVE_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("REWARDLM_CACHE", str(own_cache(tmp_path / "cache")))
    service = FakeService()
    yield service
    service.close()


@pytest.fixture(autouse=True)
def _nothing_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test's user has named isn't named by the next, nor by whoever runs the tests."""
    for named in (NAMED.origins, NAMED.clusters, NAMED.variables, NAMED.keys, NAMED.rubrics):
        named.clear()
    NAMED.plain_http = False
    monkeypatch.setattr(keys, "credentials_file", lambda: Path("/nonexistent/credentials.yaml"))


# One for all folders: Playwright runs once in a process.
@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium; the tests skip where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("chromium is not installed")
    arguments = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=executable, args=arguments)
        yield chromium
        chromium.close()


# Seconds after which a test that is not marked slow costs `make check` too much.
_TOO_SLOW = 5


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the tests that belong in the slow lane. No failure: a busy machine is slow at anything."""
    for report in terminalreporter.getreports("passed"):
        if report.duration > _TOO_SLOW and "slow" not in report.keywords:
            terminalreporter.write_line(f"{report.duration:.0f} s, and not marked slow: {report.nodeid}")
