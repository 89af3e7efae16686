"""Texts of many requests, scored together: one thread for the judges, and a queue that is bounded.

The thread takes what waits as soon as it is free: at a low load a text goes alone and at once, at a high one many go
together, and nobody waits for a batch to fill. Equal texts of a batch are scored once.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rewardlm.errors import RewardLMError
from rewardlm.scoring.scorer import Scorer, score_texts
from rewardlm.types import Verdict

# The first guess of how many characters a second a judge reads; it is measured from the first batch on.
_CHARACTERS_A_SECOND = 5_000.0


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


@dataclass(frozen=True, slots=True)
class BatchWatch:
    """What is told about the work, for metrics: a judge's batch and its seconds."""

    batch: Callable[[str, int, int, float], None] = lambda judge, texts, different, seconds: None
    waiting: Callable[[int], None] = lambda n: None


class Batcher:
    """Scores texts for an event loop. ``judges`` by name; ``room`` is how many texts may wait at most, ``most_texts``
    and ``most_characters`` what a batch may hold (a longer text goes alone).

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
    ) -> None:
        self._judges = judges
        self._room, self._most_texts, self._most_characters = room, most_texts, most_characters
        self._watch = watch or BatchWatch()
        # For each judge what waits, by number: whoever hangs up is taken out of the middle.
        self._queues: dict[str, OrderedDict[int, _Waiting]] = {name: OrderedDict() for name in judges}
        self._numbers = 0
        self._pace = dict.fromkeys(judges, _CHARACTERS_A_SECOND)
        # What the thread has now.
        self._batch_now: list[_Waiting] = []
        self._stopping = False
        # To the judges' thread go a name and texts, or None, which ends it.
        self._work: queue.SimpleQueue[tuple[str, list[_Waiting]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

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
        return not self._batch_now and not self.waiting

    def start(self) -> None:
        """Start the judges' thread; called in the loop."""
        loop = asyncio.get_running_loop()
        # A daemon: a judge that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, args=(loop,), name="judges", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take nothing new; what waits is still scored."""
        self._stopping = True

    def give_up(self) -> None:
        """Stop, and let nobody wait any longer: all that wait get Stopping."""
        self.stop()
        for one in [*self._batch_now, *(one for waiting in self._queues.values() for one in waiting.values())]:
            if not one.found.done():
                one.found.set_result(Stopping())

    def close(self, *, seconds: float = 2.0) -> None:
        """End the thread, which may take ``seconds`` for the batch that it has."""
        self.stop()
        self._work.put(None)
        if self._thread is not None:
            self._thread.join(seconds)

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
        self._go_on()
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
        return sum(
            sum(len(one.text) for one in waiting.values()) / self._pace[judge]
            for judge, waiting in self._queues.items()
        )

    def _go_on(self) -> None:
        """Give the thread the next batch, if it is free: that of the judge whose oldest text has waited longest."""
        if not self._batch_now:
            oldest = [(next(iter(waiting)), judge) for judge, waiting in self._queues.items() if waiting]
            if oldest:
                judge = min(oldest)[1]
                self._batch_now = self._batch(self._queues[judge])
                self._work.put((judge, self._batch_now))
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

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        """The judges' thread."""
        while (work := self._work.get()) is not None:
            judge, batch = work
            begun = time.perf_counter()
            found: list[Verdict] | Unusable
            try:
                found = score_texts(self._judges[judge], [one.text for one in batch])
            except RewardLMError as error:
                found = Unusable(judge, type(error).__name__)
            except Exception as error:
                # score_texts catches what a judge raises, so this is a bug of ours: the texts are unscored, and the
                # thread lives on.
                found = Unusable(judge, type(error).__name__)
            try:
                loop.call_soon_threadsafe(self._done, judge, batch, found, time.perf_counter() - begun)
            except RuntimeError:
                # The loop has ended: nobody waits any more.
                return

    def _done(self, judge: str, batch: list[_Waiting], found: list[Verdict] | Unusable, seconds: float) -> None:
        for n, one in enumerate(batch):
            if not one.found.done():
                one.found.set_result(found if isinstance(found, Unusable) else found[n])
        texts = {one.text for one in batch}
        pace = sum(map(len, texts)) / max(seconds, 1e-6)
        self._pace[judge] += 0.3 * (max(pace, 1.0) - self._pace[judge])
        self._watch.batch(judge, len(batch), len(texts), seconds)
        self._batch_now = []
        self._go_on()
