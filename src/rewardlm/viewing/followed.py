"""Follows one run: what its files said at the last look, how far it is, and whether a command still writes to it."""

from __future__ import annotations

import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any

from rewardlm.errors import RunError
from rewardlm.reporting.figures import finite
from rewardlm.reporting.shell import short
from rewardlm.runs import TRAININGS, Run, is_held, is_run, last_written, records_file
from rewardlm.viewing.curves import Curves
from rewardlm.viewing.folders import Place, identity
from rewardlm.viewing.measurements import Measurement
from rewardlm.viewing.samples import Only, ViewedAnswer, chosen
from rewardlm.viewing.tail import Tail, record

MEASURED = ("measure", "import")
# After so many seconds without a write, a run that no command here holds counts as stopped. The longest is for a run in
# another container, or on another machine that shares the folder: there we can't see who holds it.
_QUIET, _QUIET_AT_FIRST, _QUIET_UNSURE = 10.0, 30.0, 120.0
_RECENT = 20
_MOST_SAMPLES = 20_000
_MOST_DOUBTS = 40


class FollowedRun:
    """A run's folder and what was read of it. One thread calls ``look``; others read under the same lock."""

    def __init__(self, place: Place, folder: Path) -> None:
        self.place, self.folder = place, folder
        self.id = identity(folder)
        self.run = Run.open(folder)
        self.version = 0
        """Goes up with every change that a page would show."""
        self.problem: str | None = None
        self.curves = Curves()
        self.samples: deque[ViewedAnswer] = deque(maxlen=_MOST_SAMPLES)
        self.measurement = Measurement(folder) if self.kind in MEASURED else None
        self._metrics = Tail(records_file(folder, "metrics"))
        self._sampled = Tail(records_file(folder, "samples"))
        self._doubts: dict[str, dict[str, Any]] = {}
        self._described: tuple[int, ...] = ()
        self._damaged = 0
        self._pace: deque[tuple[float, int]] = deque(maxlen=60)
        self.stages: list[FollowedRun] = []
        """The runs inside of an experiment."""
        self.state = ""
        """running, finished, stopped (it says so), killed (no command writes to it) or silent (nobody can say)."""
        self.written = 0.0
        """When it was last written to, in seconds since 1970."""

    @property
    def kind(self) -> str:
        """measure, rlaf, finetune, …: what run.json says."""
        return str(self.run.meta["kind"])

    @property
    def generation(self) -> int:
        """Goes up when the curves were read anew, because the file was written anew."""
        return self._metrics.generation

    @property
    def began(self) -> str:
        """When it was begun, as run.json has it; "" where it doesn't say."""
        environment = self.run.meta.get("environment")
        return str(environment.get("date", "")) if isinstance(environment, dict) else ""

    @property
    def behind(self) -> bool:
        """Whether there is more to read at once."""
        measuring = self.measurement is not None and self.measurement.behind
        return measuring or self._metrics.behind or self._sampled.behind

    def look(self, now: float | None = None) -> None:
        """Read what is new. What can't be read is a ``problem``, which the page shows; the rest goes on."""
        before = (self.problem, self.state, self._damaged)
        try:
            changed = [self._look_at_record(), self._look_at_metrics(), self._look_at_samples()]
            if self.measurement is not None:
                changed.append(self.measurement.look())
                self._damaged = self.measurement.damaged
            self.problem = None
        except RunError as error:
            changed = []
            self.problem = str(error)
        except OSError as error:
            changed = []
            self.problem = f"can't read {self.place.name_of(self.folder)}: {error.strerror}"
        now = time.time() if now is None else now
        self.state = self._state_at(now)
        if any(changed) and not self.behind:
            self._keep_pace(now, self.progress["done"])
        if any(changed) or before != (self.problem, self.state, self._damaged):
            self.version += 1

    def _keep_pace(self, now: float, done: int) -> None:
        if self._pace and done < self._pace[-1][1]:
            self._pace.clear()
        self._pace.append((now, done))

    def _look_at_record(self) -> bool:
        if not is_run(self.folder):
            raise RunError(f"{self.place.name_of(self.folder)} is gone: its run.json was removed")
        found = (self.folder / "run.json").stat()
        described = (found.st_ino, found.st_mtime_ns, found.st_size)
        if described == self._described:
            return False
        self.run = Run.open(self.folder)
        if self.measurement is not None:
            self.measurement.judge_by(_own_thresholds(self.run))
        self._described = described
        return True

    def _look_at_metrics(self) -> bool:
        before = self._metrics.generation
        lines = self._metrics.read()
        if self._metrics.generation != before:
            self.curves, self._doubts, self._damaged = Curves(), {}, 0
        for line in lines:
            found = record(line)
            if found is None:
                self._damaged += 1
                continue
            self.curves.add(found)
            self._doubt(found)
        return bool(lines) or self._metrics.generation != before

    def _look_at_samples(self) -> bool:
        before = self._sampled.generation
        lines = self._sampled.read()
        if self._sampled.generation != before:
            self.samples.clear()
        self.samples.extend(ViewedAnswer.of_training(found) for line in lines if (found := record(line)) is not None)
        return bool(lines) or self._sampled.generation != before

    def _doubt(self, found: dict[str, Any]) -> None:
        """Keep what training warned of, one entry per kind: the kind is what stands before the colon."""
        warned = found.get("warnings")
        for text in warned if isinstance(warned, list) else []:
            kind = str(text).partition(":")[0]
            if kind in self._doubts or len(self._doubts) < _MOST_DOUBTS:
                known = self._doubts.setdefault(kind, {"first": finite(found.get("step")), "n": 0})
                known |= {"n": known["n"] + 1, "last": finite(found.get("step")), "text": str(text)[:1_000]}

    # What the page shows -----------------------------------------------------------------------------------------

    @property
    def settings(self) -> dict[str, Any]:
        """The settings, as run.json has them."""
        return self.run.meta["settings"]

    @property
    def progress(self) -> dict[str, Any]:
        """How far it is: ``done`` of ``total`` (None if nobody knows), in ``unit``."""
        if self.measurement is None:
            return {
                "done": int(self.curves.last("step") or 0),
                "total": _whole(self.settings.get("steps")) or _whole(self.run.meta.get("steps")),
                "unit": "steps",
            }
        asked, samples = self.run.meta.get("prompts"), _whole(self.settings.get("samples"))
        n = _whole(asked.get("n")) if isinstance(asked, dict) else None
        return {
            "done": self.measurement.answered + self.measurement.refused,
            "total": n * samples if n and samples else None,
            "unit": "answers",
        }

    def _state_at(self, now: float) -> str:
        # A file may be replaced at this moment: the next look finds it.
        with suppress(FileNotFoundError):
            self.written = max([last_written(self.folder), *(stage.written for stage in self.stages)])
        if self.run.meta.get("status") != "running":
            return "stopped" if self.run.meta.get("status") == "stopped" else "finished"
        states = {stage.state for stage in self.stages}
        for state in ("running", "killed", "stopped"):
            if state in states:
                return state
        # An experiment's own folder is never held, only those of its stages.
        held = None if self.kind == "experiment" else is_held(self.folder)
        if held:
            return "running"
        quiet, seconds = now - self.written, self.seconds_each
        if held is None:
            return "running" if quiet < max(_QUIET_UNSURE, 10 * (seconds or 0)) else "silent"
        return "running" if quiet < (_QUIET_AT_FIRST if seconds is None else max(_QUIET, 3 * seconds)) else "killed"

    @property
    def seconds_each(self) -> float | None:
        """Recent seconds per step; in a measurement, per answer, as we saw them come."""
        if self.measurement is None:
            recent = [value for value in self.curves.columns["seconds"][-_RECENT:] if value is not None]
            return fmean(recent) if recent else None
        if len(self._pace) < 2:
            return None
        (began, first), (ended, last) = self._pace[0], self._pace[-1]
        return (ended - began) / (last - first) if last > first and ended > began else None

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the last step or answer, at the recent pace; None if nobody knows."""
        found, each = self.progress, self.seconds_each
        if self.state != "running" or each is None or found["total"] is None:
            return None
        left: int = max(0, found["total"] - found["done"])
        return each * left

    def status_text(self) -> str:
        """The state in words, with what to do where it stopped."""
        if self.state in ("killed", "silent"):
            at = time.strftime("%H:%M:%S on %d %B", time.localtime(self.written))
            if self.state == "silent":
                return f"nothing has been written since {at}: it is slow, or it stopped"
            return f"no command writes to it any more; the last record came at {at}"
        if self.state == "stopped":
            return str(self.run.meta.get("stopped") or "stopped")
        return ""

    def how_to_go_on(self, experiment: FollowedRun | None) -> str | None:
        """For a run that stopped: the command that resumes it. ``experiment`` is the one that it belongs to, if any."""
        if self.state not in ("stopped", "killed", "silent"):
            return None
        name = self.place.name_of(self.folder)
        if experiment is not None or self.kind == "experiment":
            home = name if experiment is None else experiment.place.name_of(experiment.folder)
            command = f"rewardlm run … --out {home}"
        elif self.kind in ("measure", *TRAININGS):
            command = f"rewardlm {self.kind} {_word(self.settings.get('model'))} … --out {name}"
        else:
            command = f"rewardlm … --out {name}"
        done = int(self.curves.last("step") or 0)
        after = f" after step {done}" if done else ""
        return f"To go on{after}, give the command that began it once more, with all its flags: {command}"

    def what(self) -> str:
        """In a few words: "PPO of smollm2-135m, rewarded by starter"."""
        settings = self.settings
        model = _word(settings.get("model"))
        if self.kind == "rlaf":
            rewards = settings.get("reward")
            by = ", ".join(map(_word, rewards)) if isinstance(rewards, list) else ""
            return f"{_word(settings.get('algorithm')).upper()} of {model}" + (f", rewarded by {by}" if by else "")
        if self.kind == "experiment":
            return f"an experiment, with {len(self.stages)} {'run' if len(self.stages) == 1 else 'runs'} so far"
        titles = {
            "finetune": "fine-tuning of",
            "measure": "measurement of",
            "prefer": f"{_word(settings.get('method')).upper()} of",
        }
        if self.kind in titles:
            return f"{titles[self.kind]} {model}"
        return {"import": "imported answers", "interpretation": "look inside", "judge": "training of a judge"}.get(
            self.kind, self.kind
        )

    def doubts(self) -> list[dict[str, Any]]:
        """What training warned of: ``first`` and ``last`` step, ``n`` times, the last ``text``; the newest first."""
        return sorted(self._doubts.values(), key=lambda doubt: -(doubt["last"] or 0))

    def answers(self, *, step: int | None, text: str = "", only: Only = "all") -> dict[str, Any]:
        """Answers to show, how many there are in all, and the steps that kept some."""
        kept = list(self.samples) if self.measurement is None else self.measurement.newest()
        shown, n = chosen(kept, step=step, text=text, only=only)
        return {
            "id": self.id,
            "label": self.run.label,
            "steps": sorted({answer.step for answer in kept if answer.step is not None}),
            "n": n,
            "answers": [answer.to_dict() for answer in shown],
        }

    def damaged(self) -> str | None:
        """A sentence about lines that hold no record; None where all do."""
        if not self._damaged:
            return None
        lines = "1 line holds" if self._damaged == 1 else f"{self._damaged:,} lines hold"
        return f"{lines} no record: a file was changed by hand"


def _own_thresholds(run: Run) -> dict[str, float]:
    """By judge, the thresholds that the run recorded; what is no number is left out, and ``compare`` refuses it."""
    recorded = run.meta.get("thresholds")
    known = recorded if isinstance(recorded, dict) else {}
    values = {name: finite(own.get("value")) for name, own in known.items() if isinstance(own, dict)}
    return {name: value for name, value in values.items() if value is not None}


def _whole(value: object) -> int | None:
    number = finite(value)
    return int(number) if number is not None and number > 0 else None


def _word(value: object) -> str:
    """A setting as text; of a path only its end."""
    return short(value) or "?"
