"""Texts of many requests, scored together, in a queue that is bounded.

A judge's thread takes what waits as soon as it is free: at a low load a text goes alone and at once, at a high one many
go together. After a batch of several, a moment is left to those who were just answered, if they ask again at once:
otherwise the clients would split into parts that take turns, in smaller batches. Equal texts of a batch are
scored once. Judges that compute share a few threads, because they share the processor. With a core for each, no core
waits for another in the middle of a batch, and one computes while the other is needed for requests. A judge that can't
be used by two threads at once has one of them. A judge that may wait for somebody else (a service, a user's function)
has a thread of its own and holds up nobody.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from rewardlm.scoring.scorer import Scorer, score_texts
from rewardlm.types import Verdict

# The first guess of how many characters a second a judge reads; it is measured from the first batch on.
_CHARACTERS_A_SECOND = 5_000.0
# How long those who were just answered are waited for: a share of what their batch took, and at most so many seconds.
_SHARE_FOR_THE_NEXT, _MOST_FOR_THE_NEXT = 0.6, 0.1
# After pauses in which they didn't come, batches go without: two, and twice as many after each further one, up to 32.
_MOST_IN_VAIN = 5
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


@dataclass(eq=False, slots=True)
class _Worker:
    """A thread, the judges that it may run, and the batch that it has now, since ``begun`` (monotonic seconds)."""

    number: int
    judges: dict[str, Scorer]
    failures: dict[str, _Failures] = field(init=False)
    batch: list[_Waiting] = field(default_factory=list)
    judge: str = ""
    begun: float = 0.0
    # A name and texts, or None, which ends the thread.
    work: queue.SimpleQueue[tuple[str, list[_Waiting]] | None] = field(default_factory=queue.SimpleQueue)
    thread: threading.Thread | None = None
    # While there is a pause, the next batch waits for it to end, or for ``expected`` texts. A pause that ends without
    # them was ``in_vain``, and the next ``skip`` batches have none.
    pause: asyncio.TimerHandle | None = None
    expected: int = 0
    in_vain: int = 0
    skip: int = 0

    def __post_init__(self) -> None:
        self.failures = {name: _Failures() for name in self.judges}


@dataclass(eq=False, slots=True)
class _Lane:
    """Threads that take their work from the same judges' queues."""

    judges: tuple[str, ...]
    workers: list[_Worker]

    def of(self, judge: str) -> list[_Worker]:
        """The threads that may run ``judge``."""
        return [worker for worker in self.workers if judge in worker.judges]


@dataclass(frozen=True, slots=True)
class BatchWatch:
    """What is told about the work, for metrics: a judge's batch and its seconds."""

    batch: Callable[[str, int, int, float], None] = lambda judge, texts, different, seconds: None
    waiting: Callable[[int], None] = lambda n: None


class Batcher:
    """Scores texts for an event loop. ``judges`` by name; ``room`` is how many texts may wait at most, ``most_texts``
    and ``most_characters`` what a batch may hold (a longer text goes alone). Judges in ``alone`` have threads of their
    own; ``twins`` are further scorers of a judge, each for one more of the threads that the others share. ``enter`` is
    called with a judge's name and the thread's number, in the thread that is about to run it. ``reopen`` makes a judge
    anew that has said that it can't be used: one behind HTTP closes itself then.

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
        twins: Mapping[str, Sequence[Scorer]] | None = None,
        enter: Callable[[str, int], None] = lambda judge, number: None,
        reopen: Mapping[str, Callable[[], Scorer]] | None = None,
    ) -> None:
        self._room, self._most_texts, self._most_characters = room, most_texts, most_characters
        self._watch = watch or BatchWatch()
        self._enter, self._reopen = enter, dict(reopen or {})
        # For each judge what waits, by number: whoever hangs up is taken out of the middle.
        self._queues: dict[str, OrderedDict[int, _Waiting]] = {name: OrderedDict() for name in judges}
        self._numbers = 0
        self._pace = dict.fromkeys(judges, _CHARACTERS_A_SECOND)
        together = {name: judge for name, judge in judges.items() if name not in alone}
        shared = [together, *({} for _ in range(max(map(len, (twins or {}).values()), default=0)))]
        for name, others in (twins or {}).items():
            for more, twin in zip(shared[1:], others, strict=False):
                more[name] = twin
        self._lanes = [
            # The one that may run all judges is asked last: some of them have no other.
            _Lane(tuple(groups[0]), [_Worker(number, group) for number, group in reversed([*enumerate(groups)])])
            for groups in (shared, *([{name: judges[name]}] for name in alone))
            if groups[0]
        ]
        self._lane_of = {name: lane for lane in self._lanes for name in lane.judges}
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
        return not self.waiting and not any(worker.batch for worker in self._workers)

    @property
    def _workers(self) -> Iterator[_Worker]:
        return itertools.chain.from_iterable(lane.workers for lane in self._lanes)

    def stuck(self, seconds: float) -> list[str]:
        """The judges whose threads have all had one batch for longer than ``seconds``."""
        now = time.monotonic()

        def hangs(worker: _Worker) -> bool:
            return bool(worker.batch) and now - worker.begun > seconds

        return [name for name, lane in self._lane_of.items() if all(map(hangs, lane.of(name)))]

    def start(self) -> None:
        """Start the judges' threads; called in the loop."""
        loop = asyncio.get_running_loop()
        for lane in self._lanes:
            for worker in lane.workers:
                # A daemon: a judge that hangs must not keep the process from ending.
                worker.thread = threading.Thread(
                    target=self._run, args=(lane, worker, loop), name="judges", daemon=True
                )
                worker.thread.start()

    def stop(self) -> None:
        """Take nothing new; what waits is still scored."""
        self._stopping = True

    def give_up(self) -> None:
        """Stop, and let nobody wait any longer: all that wait get Stopping."""
        self.stop()
        being_scored = [one for worker in self._workers for one in worker.batch]
        for one in [*being_scored, *(one for waiting in self._queues.values() for one in waiting.values())]:
            if not one.found.done():
                one.found.set_result(Stopping())

    def close(self, *, seconds: float = 2.0) -> None:
        """End the threads, which may take ``seconds`` for the batches that they have."""
        self.stop()
        until = time.monotonic() + seconds
        for worker in self._workers:
            worker.work.put(None)
        for worker in self._workers:
            if worker.thread is not None:
                worker.thread.join(max(0.0, until - time.monotonic()))

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
        def seconds(name: str, lane: _Lane) -> float:
            return sum(len(one.text) for one in self._queues[name].values()) / (self._pace[name] * len(lane.of(name)))

        return max(sum(seconds(name, lane) for name in lane.judges) for lane in self._lanes)

    def _go_on(self, lane: _Lane) -> None:
        """Give each thread that is free the next batch: that of the judge whose oldest text has waited longest."""
        for worker in lane.workers:
            if worker.pause is not None and (self._waiting_for(worker) >= worker.expected or self._stopping):
                worker.in_vain = max(0, worker.in_vain - 1)
                self._end_pause(worker)
            if not worker.batch and worker.pause is None:
                oldest = [(next(iter(self._queues[name])), name) for name in worker.judges if self._queues[name]]
                if oldest:
                    worker.judge = min(oldest)[1]
                    worker.batch = self._batch(self._queues[worker.judge], self._share(lane, worker.judge))
                    worker.begun = time.monotonic()
                    worker.work.put((worker.judge, worker.batch))
        self._watch.waiting(self.waiting)

    def _share(self, lane: _Lane, judge: str, more: int = 0) -> int:
        """How many texts of ``judge`` go together at most: each of its threads gets as many of all that are here (and
        of ``more`` that are expected) as the others, so that none has much to do while another has little.
        """
        workers = lane.of(judge)
        here = len(self._queues[judge]) + sum(len(worker.batch) for worker in workers if worker.judge == judge)
        return max(1, min(self._most_texts, math.ceil((here + more) / len(workers))))

    def _batch(self, waiting: OrderedDict[int, _Waiting], most: int) -> list[_Waiting]:
        """The oldest texts, ``most`` different ones at most; a text that is in it already costs nothing more."""
        batch: list[_Waiting] = []
        different: set[str] = set()
        characters = 0
        while waiting:
            one = next(iter(waiting.values()))
            if one.text not in different:
                characters += len(one.text)
                if batch and (len(different) == most or characters > self._most_characters):
                    break
                different.add(one.text)
            batch.append(one)
            waiting.popitem(last=False)
        return batch

    def _run(self, lane: _Lane, worker: _Worker, loop: asyncio.AbstractEventLoop) -> None:
        """A judges' thread."""
        while (work := worker.work.get()) is not None:
            judge, batch = work
            begun = time.perf_counter()
            found = self._scored(worker, judge, [one.text for one in batch])
            try:
                loop.call_soon_threadsafe(self._done, lane, worker, found, time.perf_counter() - begun)
            except RuntimeError:
                # The loop has ended: nobody waits any more.
                return

    def _scored(self, worker: _Worker, judge: str, texts: list[str]) -> list[Verdict | Unusable]:
        """What became of each text. Whatever a judge does, its thread lives on."""
        failures = worker.failures[judge]
        try:
            if failures.number and judge in self._reopen:
                if time.monotonic() < failures.again:
                    return [Unusable(judge, "it failed a moment ago")] * len(texts)
                worker.judges[judge] = self._reopen[judge]()
            self._enter(judge, worker.number)
            found: list[Verdict | Unusable] = [*score_texts(worker.judges[judge], texts)]
        # SystemExit, too: a judge may be anybody's function.
        except BaseException as error:
            failures.add()
            # A judge behind HTTP keeps what it was told before the service failed.
            told: Mapping[str, Verdict] = getattr(worker.judges[judge], "unfinished", {})
            return [told.get(text, Unusable(judge, type(error).__name__)) for text in texts]
        failures.number = 0
        return found

    def _done(self, lane: _Lane, worker: _Worker, found: list[Verdict | Unusable], seconds: float) -> None:
        judge, batch = worker.judge, worker.batch
        for one, verdict in zip(batch, found, strict=True):
            if not one.found.done():
                one.found.set_result(verdict)
        texts = {one.text for one in batch}
        pace = sum(map(len, texts)) / max(seconds, 1e-6)
        self._pace[judge] += 0.3 * (max(pace, 1.0) - self._pace[judge])
        self._watch.batch(judge, len(batch), len(texts), seconds)
        worker.batch = []
        if len(batch) > 1 and worker.skip > 0:
            worker.skip -= 1
        elif len(batch) > 1:
            here = self._waiting_for(worker)
            worker.expected = min(here + len(batch), self._share(lane, judge, more=len(batch)))
            pause = min(_SHARE_FOR_THE_NEXT * seconds, _MOST_FOR_THE_NEXT)
            worker.pause = asyncio.get_running_loop().call_later(pause, self._after_pause, lane, worker)
        self._go_on(lane)

    def _waiting_for(self, worker: _Worker) -> int:
        return sum(len(self._queues[name]) for name in worker.judges)

    def _end_pause(self, worker: _Worker) -> None:
        if worker.pause is not None:
            worker.pause.cancel()
            worker.pause = None

    def _after_pause(self, lane: _Lane, worker: _Worker) -> None:
        worker.in_vain = min(worker.in_vain + 1, _MOST_IN_VAIN)
        worker.skip = 2**worker.in_vain
        self._end_pause(worker)
        self._go_on(lane)
