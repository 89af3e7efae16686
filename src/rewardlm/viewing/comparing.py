"""Comparisons that a page asks for: made one at a time, beside the server, and kept until a run's files change."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

# Pages that are kept, of some megabytes each.
_KEPT = 8
# Seconds after which a comparison that failed is tried again: memory may have been short.
_TOLD_FOR = 5.0


class Comparisons:
    """Compares runs for the page, and keeps what was found. The reports lie in a folder that ``close`` removes."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="rewardlm-view-")
        self._known: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._queue: queue.SimpleQueue[tuple[str, list[Path]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="compare runs", daemon=True)
        self._thread.start()

    def of(self, folders: Sequence[Path]) -> dict[str, Any]:
        """The comparison of these runs as they are now: ``status`` is waiting, comparing (with what is ``found``
        already), ready (with the ``page``'s name) or failed (with ``error``). Starts a comparison that nobody asked for
        before; never waits.
        """
        name = stamp(folders)
        with self._lock:
            known = self._known.get(name)
            if known is None or (known["status"] == "failed" and time.time() - known["ended"] > _TOLD_FOR):
                self._known[name] = {"status": "waiting", "since": time.time()}
                self._queue.put((name, list(folders)))
            self._known.move_to_end(name)
            found = dict(self._known[name])
        found["seconds"] = round(found.pop("ended", time.time()) - found.pop("since"), 1)
        return found

    def page(self, name: str) -> Path | None:
        """The file of a page that is ready; None where there is none of that name."""
        with self._lock:
            ready = self._known.get(name, {}).get("status") == "ready"
        return self._file(name) if ready else None

    def close(self) -> None:
        """Stop comparing and remove the pages."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.kill()
        self._queue.put(None)
        self._thread.join(timeout=10)
        self._folder.cleanup()

    def _file(self, name: str) -> Path:
        return Path(self._folder.name) / f"{name}.html"

    def _work(self) -> None:
        while (asked := self._queue.get()) is not None and not self._closed:
            name, folders = asked
            try:
                self._compare(name, folders)
            except Exception as error:
                # Whoever waits for this comparison is told; the others go on.
                traceback.print_exc()
                self._note(name, status="failed", error=f"{type(error).__name__}: {error}", ended=time.time())
            self._forget()

    def _compare(self, name: str, folders: Sequence[Path]) -> None:
        self._note(name, status="comparing", since=time.time())
        with self._lock:
            if self._closed:
                return
            # In a session of its own: Ctrl-C reaches the server alone, which ends this process.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "rewardlm.viewing.conclude"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")},
            )
        with self._process as process:
            try:
                error, ready, said = self._hear(process, name, folders)
            finally:
                process.kill()  # Where it has ended, this does nothing.
        if ready and process.returncode == 0:
            self._note(name, status="ready", page=name, ended=time.time())
            return
        if error is None:
            error = f"the comparison ended with exit code {process.returncode}{said}"
        self._note(name, status="failed", error=error, ended=time.time())

    def _hear(self, process: subprocess.Popen[str], name: str, folders: Sequence[Path]) -> tuple[str | None, bool, str]:
        """Send the request and note what is found until the process ends. Returns an error, whether the page is there,
        and the last line of stderr.
        """
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        lines: list[str] = []
        errors = threading.Thread(target=lines.extend, args=(process.stderr,), daemon=True)
        errors.start()
        # If it ended before it read, its exit code says so.
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps({"runs": [str(path) for path in folders], "page": str(self._file(name))}))
            process.stdin.close()
        error, ready = None, False
        for line in process.stdout:
            found = json.loads(line)
            error = found.pop("error", error)
            if found.pop("page", False):
                ready = True
                self._note(name, explorer=bool(found.pop("explorer", False)))
            if found:
                self._note(name, found=found)
        process.wait()
        errors.join()
        return error, ready, "".join(f": {line.strip()[:300]}" for line in lines[-1:])

    def _note(self, name: str, **fields: Any) -> None:
        with self._lock:
            self._known[name] |= fields

    def _forget(self) -> None:
        """Drop the oldest of those that are done."""
        with self._lock:
            done = [name for name, found in self._known.items() if found["status"] in ("ready", "failed")]
            for name in done[: max(0, len(done) - _KEPT)]:
                del self._known[name]
                self._file(name).unlink(missing_ok=True)


def stamp(folders: Sequence[Path]) -> str:
    """A name for what these runs hold now, made from their folders and the size and date of each file."""
    digest = hashlib.sha256()
    for folder in folders:
        digest.update(os.fsencode(folder) + b"\0")
        for file in sorted([*folder.glob("*.json"), *folder.glob("*.jsonl")]):
            try:
                found = file.lstat()
            except FileNotFoundError:
                # A file that is being replaced comes back with another date.
                continue
            digest.update(f"{file.name} {found.st_size} {found.st_mtime_ns} {found.st_ino}\0".encode())
    return digest.hexdigest()[:32]
