"""Texts of many requests, scored together, in a queue that is bounded.

A judge's thread takes what waits as soon as it is free: at a low load a text goes alone and at once, at a high one many
go together. After a batch of several, a moment is left to those who were just answered, if they ask again at once:
otherwise the clients would split into two halves that take turns, in batches half as large. Equal texts of a batch are
scored once. Judges that compute share one thread, because they share the processor; a judge that may wait for somebody
else (a service, a user's function) has a thread of its own and holds up nobody.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rewardlm.scoring.scorer import Scorer, score_texts
from rewardlm.types import Verdict

# The first guess of how many characters a second a judge reads; it is measured from the first batch on.
_CHARACTERS_A_SECOND = 5_000.0
# How long those who were just answered are waited for: a share of what their batch took, and at most so many seconds.
_SHARE_FOR_THE_NEXT, _MOST_FOR_THE_NEXT = 0.6, 0.1
# Where fewer than half of them came back within it, so many batches go without.
_WITHOUT_PAUSE = 20
# The longest pause before a judge that has failed as a whole is loaded again.
_LONGEST_PAUSE = 60.0


class Busy(Exception):
    """The queue is full; ``seconds`` is about how long what waits will take."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class Stopping(Exception):
    """The server is on its way out and takes nothing new."""


class Unusable(Exception):
    """A judge can't be used at the moment, whatever the text: a service that is gone, say. ``kind`` names the error,
    whose message may quote other requests' texts.
    """

    def __init__(self, judge: str, kind: str) -> None:
        super().__init__(judge, kind)
        self.judge, self.kind = judge, kind


@dataclass(eq=False, slots=True)
class _Waiting:
    """One text and who waits for its verdict."""

    number: int
    text: str
    found: asyncio.Future[Verdict | Unusable | Stopping] = field(repr=False)


@dataclass(eq=False, slots=True)
class _Lane:
    """A thread, the judges that it runs, and the batch that it has now, since ``begun`` (monotonic seconds)."""

    judges: tuple[str, ...]
    batch: list[_Waiting] = field(default_factory=list)
    begun: float = 0.0
    # A name and texts, or None, which ends the thread.
    work: queue.SimpleQueue[tuple[str, list[_Waiting]] | None] = field(default_factory=queue.SimpleQueue)
    thread: threading.Thread | None = None
    # While there is a pause, the next batch waits for it to end, or for ``expected`` texts. ``enough`` of them show
    # that those who were answered ask again; after a pause without, ``skip`` batches have none.
    pause: asyncio.TimerHandle | None = None
    expected: int = 0
    enough: int = 0
    skip: int = 0


@dataclass(slots=True)
class _Failures:
    """How often in a row a judge has failed as a whole, and when it may be loaded again (monotonic seconds)."""

    number: int = 0
    again: float = 0.0

    def add(self) -> None:
        # At once the first time: what failed may have been one text's fault. Then after 2, 4, 8 … seconds.
        self.number += 1
        pause = 0.0 if self.number == 1 else min(2.0 ** (self.number - 1), _LONGEST_PAUSE)
        self.again = time.monotonic() + pause


@dataclass(frozen=True, slots=True)
class BatchWatch:
    """What is told about the work, for metrics: a judge's batch and its seconds."""

    batch: Callable[[str, int, int, float], None] = lambda judge, texts, different, seconds: None
    waiting: Callable[[int], None] = lambda n: None


class Batcher:
    """Scores texts for an event loop. ``judges`` by name; ``room`` is how many texts may wait at most, ``most_texts``
    and ``most_characters`` what a batch may hold (a longer text goes alone). Judges in ``alone`` have threads of their
    own. ``reopen`` makes a judge anew that has said that it can't be used: one behind HTTP closes itself then.

    Every method but ``__init__`` belongs to the loop's thread.
    """

    def __init__(
        self,
        judges: Mapping[str, Scorer],
        *,
        room: int,
        most_texts: int,
        most_characters: int,
        watch: BatchWatch | None = None,
        alone: Sequence[str] = (),
        reopen: Mapping[str, Callable[[], Scorer]] | None = None,
    ) -> None:
        self._judges = dict(judges)
        self._room, self._most_texts, self._most_characters = room, most_texts, most_characters
        self._watch = watch or BatchWatch()
        self._reopen = dict(reopen or {})
        # For each judge what waits, by number: whoever hangs up is taken out of the middle.
        self._queues: dict[str, OrderedDict[int, _Waiting]] = {name: OrderedDict() for name in judges}
        self._numbers = 0
        self._pace = dict.fromkeys(judges, _CHARACTERS_A_SECOND)
        together = tuple(name for name in judges if name not in alone)
        self._lanes = [_Lane(names) for names in (together, *((name,) for name in alone)) if names]
        self._lane_of = {name: lane for lane in self._lanes for name in lane.judges}
        # Touched by the judge's own thread alone.
        self._failures = {name: _Failures() for name in judges}
        self._stopping = False

    @property
    def waiting(self) -> int:
        """How many texts wait."""
        return sum(map(len, self._queues.values()))

    @property
    def stopping(self) -> bool:
        """Whether nothing new is taken."""
        return self._stopping

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is being scored."""
        return not self.waiting and not any(lane.batch for lane in self._lanes)

    def stuck(self, seconds: float) -> list[str]:
        """The judges whose thread has had one batch for longer than ``seconds``."""
        now = time.monotonic()
        return [name for lane in self._lanes if lane.batch and now - lane.begun > seconds for name in lane.judges]

    def start(self) -> None:
        """Start the judges' threads; called in the loop."""
        loop = asyncio.get_running_loop()
        for lane in self._lanes:
            # A daemon: a judge that hangs must not keep the process from ending.
            lane.thread = threading.Thread(target=self._run, args=(lane, loop), name="judges", daemon=True)
            lane.thread.start()

    def stop(self) -> None:
        """Take nothing new; what waits is still scored."""
        self._stopping = True

    def give_up(self) -> None:
        """Stop, and let nobody wait any longer: all that wait get Stopping."""
        self.stop()
        being_scored = [one for lane in self._lanes for one in lane.batch]
        for one in [*being_scored, *(one for waiting in self._queues.values() for one in waiting.values())]:
            if not one.found.done():
                one.found.set_result(Stopping())

    def close(self, *, seconds: float = 2.0) -> None:
        """End the threads, which may take ``seconds`` for the batches that they have."""
        self.stop()
        until = time.monotonic() + seconds
        for lane in self._lanes:
            lane.work.put(None)
        for lane in self._lanes:
            if lane.thread is not None:
                lane.thread.join(max(0.0, until - time.monotonic()))

    async def score(self, judge: str, texts: Sequence[str]) -> list[Verdict]:
        """One verdict per text, in order. If this is cancelled, the texts that wait are not scored.

        Raises Busy, Stopping, and Unusable where the judge has failed as a whole.
        """
        if self._stopping:
            raise Stopping
        if self.waiting + len(texts) > self._room:
            raise Busy(self._seconds_left())
        loop = asyncio.get_running_loop()
        mine = [_Waiting(self._numbers + n, text, loop.create_future()) for n, text in enumerate(texts)]
        self._numbers += len(mine)
        waiting = self._queues[judge]
        waiting.update((one.number, one) for one in mine)
        self._go_on(self._lane_of[judge])
        try:
            found = [await one.found for one in mine]
        finally:
            for one in mine:
                waiting.pop(one.number, None)
                one.found.cancel()
            self._watch.waiting(self.waiting)
        verdicts = []
        for verdict in found:
            if isinstance(verdict, Unusable | Stopping):
                raise verdict
            verdicts.append(verdict)
        return verdicts

    def _seconds_left(self) -> float:
        return max(
            sum(sum(len(one.text) for one in self._queues[name].values()) / self._pace[name] for name in lane.judges)
            for lane in self._lanes
        )

    def _go_on(self, lane: _Lane) -> None:
        """Give a thread the next batch, if it is free: that of the judge whose oldest text has waited longest."""
        if lane.pause is not None and (self._waiting_in(lane) >= lane.expected or self._stopping):
            self._end_pause(lane)
        if not lane.batch and lane.pause is None:
            oldest = [(next(iter(self._queues[name])), name) for name in lane.judges if self._queues[name]]
            if oldest:
                judge = min(oldest)[1]
                lane.batch, lane.begun = self._batch(self._queues[judge]), time.monotonic()
                lane.work.put((judge, lane.batch))
        self._watch.waiting(self.waiting)

    def _batch(self, waiting: OrderedDict[int, _Waiting]) -> list[_Waiting]:
        """The oldest texts, as many as a batch holds; a text that is in it already costs nothing more."""
        batch: list[_Waiting] = []
        different: set[str] = set()
        characters = 0
        while waiting:
            one = next(iter(waiting.values()))
            if one.text not in different:
                characters += len(one.text)
                if batch and (len(different) == self._most_texts or characters > self._most_characters):
                    break
                different.add(one.text)
            batch.append(one)
            waiting.popitem(last=False)
        return batch

    def _run(self, lane: _Lane, loop: asyncio.AbstractEventLoop) -> None:
        """A judges' thread."""
        while (work := lane.work.get()) is not None:
            judge, batch = work
            begun = time.perf_counter()
            found = self._scored(judge, [one.text for one in batch])
            try:
                loop.call_soon_threadsafe(self._done, lane, judge, batch, found, time.perf_counter() - begun)
            except RuntimeError:
                # The loop has ended: nobody waits any more.
                return

    def _scored(self, judge: str, texts: list[str]) -> list[Verdict | Unusable]:
        """What became of each text. Whatever a judge does, its thread lives on."""
        failures = self._failures[judge]
        try:
            if failures.number and judge in self._reopen:
                if time.monotonic() < failures.again:
                    return [Unusable(judge, "it failed a moment ago")] * len(texts)
                self._judges[judge] = self._reopen[judge]()
            found: list[Verdict | Unusable] = [*score_texts(self._judges[judge], texts)]
        # SystemExit, too: a judge may be anybody's function.
        except BaseException as error:
            failures.add()
            # A judge behind HTTP keeps what it was told before the service failed.
            told: Mapping[str, Verdict] = getattr(self._judges[judge], "unfinished", {})
            return [told.get(text, Unusable(judge, type(error).__name__)) for text in texts]
        failures.number = 0
        return found

    def _done(
        self, lane: _Lane, judge: str, batch: list[_Waiting], found: list[Verdict | Unusable], seconds: float
    ) -> None:
        for one, verdict in zip(batch, found, strict=True):
            if not one.found.done():
                one.found.set_result(verdict)
        texts = {one.text for one in batch}
        pace = sum(map(len, texts)) / max(seconds, 1e-6)
        self._pace[judge] += 0.3 * (max(pace, 1.0) - self._pace[judge])
        self._watch.batch(judge, len(batch), len(texts), seconds)
        lane.batch = []
        if len(batch) > 1 and lane.skip > 0:
            lane.skip -= 1
        elif len(batch) > 1:
            waiting = self._waiting_in(lane)
            lane.expected = min(waiting + len(batch), self._most_texts)
            lane.enough = waiting + len(batch) // 2
            pause = min(_SHARE_FOR_THE_NEXT * seconds, _MOST_FOR_THE_NEXT)
            lane.pause = asyncio.get_running_loop().call_later(pause, self._after_pause, lane)
        self._go_on(lane)

    def _waiting_in(self, lane: _Lane) -> int:
        return sum(len(self._queues[name]) for name in lane.judges)

    def _end_pause(self, lane: _Lane) -> None:
        if lane.pause is not None:
            lane.pause.cancel()
            lane.pause = None

    def _after_pause(self, lane: _Lane) -> None:
        if self._waiting_in(lane) < lane.enough:
            lane.skip = _WITHOUT_PAUSE
        self._end_pause(lane)
        self._go_on(lane)
