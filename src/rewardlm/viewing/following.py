"""Follows every run in the folders that were named, in a thread of its own; requests read what it has seen."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rewardlm.errors import RunError
from rewardlm.measuring.metrics import HIGH_ABOVE, LOW_BELOW
from rewardlm.viewing.curves import charts
from rewardlm.viewing.folders import Place, find_runs
from rewardlm.viewing.followed import MEASURED, FollowedRun

# Seconds between two looks, if there is nothing left to read.
EVERY_SECONDS = 1.0
# Seconds without a request after which nothing is read: nobody looks at the page.
_ASLEEP_AFTER = 60.0
# Numbers of a training that stand beside its name.
_SHOWN = ("loss", "eval_loss", "reward_mean", "toxicity_mean", "kl", "entropy", "response_tokens")


class Follower:
    """The runs in ``places``, kept up to date while somebody asks."""

    def __init__(self, places: Sequence[Place], *, every: float = EVERY_SECONDS) -> None:
        self.places = places
        self._every = every
        self._runs: dict[str, FollowedRun] = {}
        self._broken: dict[Path, str] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._wanted = threading.Event()
        self._asked = time.monotonic()
        self._ready = False
        self._thread = threading.Thread(target=self._follow, name="follow runs", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def close(self) -> None:
        """Stop following."""
        self._stop.set()
        self._wanted.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=5)

    def _follow(self) -> None:
        while not self._stop.is_set():
            behind = self.look()
            if not behind:
                self._stop.wait(self._every)
            if time.monotonic() - self._asked > _ASLEEP_AFTER:
                self._wanted.clear()
                self._wanted.wait()

    def look(self) -> bool:
        """Look at every run once, and for new ones. Returns whether there is more to read at once."""
        found: dict[Path, Place] = {}
        for place in self.places:
            for folder in find_runs(place):
                found.setdefault(folder, place)
        known = {run.folder: run for run in self._runs.values()}
        opened: list[FollowedRun] = []
        broken: dict[Path, str] = {}
        for folder, place in found.items():
            try:
                opened.append(known.get(folder) or FollowedRun(place, folder))
            except RunError as error:
                broken[folder] = str(error)
            except OSError as error:
                broken[folder] = f"can't read {place.name_of(folder)}: {error.strerror}"
        ordered = sorted(opened, key=lambda run: (self.places.index(run.place), run.began, run.folder))
        with self._lock:
            self._runs = {run.id: run for run in ordered}
            self._broken = broken
        # The stages first: an experiment's state follows from theirs.
        for run in sorted(ordered, key=lambda run: run.kind == "experiment"):
            with self._lock:
                if run.kind == "experiment":
                    run.stages = [one for one in ordered if run.folder in one.folder.parents]
                try:
                    run.look()
                except Exception as error:
                    # A bug of ours, met in one run: show it there, and go on with the others.
                    if run.problem is None:
                        traceback.print_exc()
                    run.problem = f"{type(error).__name__}: {error}"
        self._ready = True
        return any(run.behind for run in ordered)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        self._asked = time.monotonic()
        self._wanted.set()
        with self._lock:
            yield

    def get(self, identity: str) -> FollowedRun | None:
        """The run of that id; None where there is none."""
        with self._asking():
            return self._runs.get(identity)

    def read(self, run: FollowedRun, what: Callable[[FollowedRun], dict[str, Any]]) -> dict[str, Any]:
        """What ``what`` finds in ``run``, while nothing changes it."""
        with self._asking():
            return what(run)

    def state(self) -> dict[str, Any]:
        """Everything but curves and answers: ``runs``, ``waiting`` (for folders without runs), ``broken``, ``charts``,
        and whether the first look is still under way (``reading``).
        """
        with self._asking():
            runs = list(self._runs.values())
            keys = {key for run in runs for key in run.curves.columns}
            return {
                "reading": not self._ready or any(run.behind for run in runs),
                "runs": [self._described(run) for run in runs],
                "waiting": [
                    {"place": place.given, "there": place.path.is_dir()}
                    for place in self.places
                    if not any(run.place == place for run in runs)
                ],
                "broken": list(self._broken.values()),
                "charts": charts(keys),
                "limits": {"low": LOW_BELOW, "high": HIGH_ABOVE},
            }

    def _described(self, run: FollowedRun) -> dict[str, Any]:
        experiment = next((one for one in self._runs.values() if run in one.stages), None)
        measurement = run.measurement
        return {
            "id": run.id,
            "label": run.run.label,
            "kind": run.kind,
            "what": run.what(),
            "name": run.place.name_of(run.folder),
            "experiment": None if experiment is None else experiment.id,
            "version": run.version,
            "state": run.state,
            "status": run.status_text(),
            "go_on": run.how_to_go_on(experiment),
            "problem": run.problem or run.damaged(),
            "progress": run.progress,
            "seconds_each": _rounded(run.seconds_each),
            "seconds_left": _rounded(run.seconds_left),
            "generation": run.generation,
            "n": run.curves.n,
            "numbers": {key: value for key in _SHOWN if (value := run.curves.last(key)) is not None},
            "doubts": run.doubts(),
            "samples": len(run.samples) if measurement is None else measurement.answered,
            "measured": run.kind in MEASURED,
            "scores": [] if measurement is None else measurement.scores(),
        }


def curves_since(run: FollowedRun, generation: int, start: int) -> dict[str, Any]:
    """The columns of a run from row ``start`` on; all of them, if ``generation`` is not the run's any more."""
    begin = start if generation == run.generation and 0 <= start <= run.curves.n else 0
    return {
        "id": run.id,
        "generation": run.generation,
        "from": begin,
        "n": run.curves.n,
        "columns": run.curves.since(begin),
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 2)
