"""``--engine openai``: answers of any model behind an OpenAI-compatible chat API (llama.cpp, vLLM, SGLang, a vendor).

A server shows no weights. So its answers have no perplexity, and no hash says whether two runs asked the same model.
Instead the run records the model's name, what the server calls it in answers, and the address (without keys). It can be
steered from outside only: by a system prompt, or by choosing among its answers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence, Set
from dataclasses import replace
from typing import Any

from rewardlm.config import BY_A_JUDGE, MeasureSettings
from rewardlm.errors import ConfigError, ServiceError
from rewardlm.measuring.engines import NoAnswer, Question
from rewardlm.models.load import resolve_device
from rewardlm.services import Malformed, Refused, Service, Unanswered
from rewardlm.steering.folder import SteerFolder, read_steer_folder
from rewardlm.steering.record import refuse_strength
from rewardlm.steering.selection import Chooser, Selection, seed_of
from rewardlm.steering.system import in_front
from rewardlm.types import Finish, Generation, is_text

# The finish reason of an answer that a provider's filter took away: nothing is left to judge.
_FILTERED = "content_filter"
# With any other finish reason (a filter, a tool call, none at all), nobody knows whether the answer was cut off.
_ENDS: dict[str, Finish] = {"stop": "stop", "length": "length"}


class ServedEngine:
    """Asks ``settings.url`` with ``settings.server.concurrency`` questions under way at a time.

    Raises ServiceError where nothing answers at the address, and ConfigError for a steering that changes the model.
    """

    def __init__(self, settings: MeasureSettings, label: str) -> None:
        self._settings, self._label = settings, label
        self._folder = None if settings.steer is None else read_steer_folder(settings.steer)
        self._strength = 0.0
        self._told: str | None = None
        self._chooser: Chooser | None = None
        if self._folder is not None:
            self._steer(self._folder)
        self._service = Service(
            settings.asked_server,
            what=f"the server of {settings.model!r}",
            section="server",
            gone="give --url as far as /v1, and the model's name as the server knows it",
        )
        self._names: set[str] = set()
        self._served = self._greet()

    def describe(self) -> dict[str, Any]:
        return {
            "model": self._settings.model,
            "model_source": self._service.address,
            "model_hash": None,
            "served": self._served,
            "served_as": sorted(self._names),
            "treatment": None if self._folder is None else self._folder.treatment(self._strength),
        }

    def close(self) -> None:
        """Give up the requests under way."""
        self._service.close()

    def answers(self, window: Sequence[Question], known: Set[int]) -> Iterator[Generation | NoAnswer]:
        asked = [question for index, question in enumerate(window) if index not in known]
        if self._chooser is None:
            return (answer for _, answer in self._service.each(self._ask, asked))
        return self._chosen(asked, self._chooser)

    def _steer(self, folder: SteerFolder) -> None:
        record, settings = folder.record, self._settings
        self._strength = record.at(settings.strength)
        refuse_strength(record.method, self._strength, settings.generation)
        if record.method == "system":
            self._told = str(record.settings["prompt"]) if self._strength else None
        elif record.method in BY_A_JUDGE:
            if self._strength > 1:
                self._chooser = Selection(folder, settings.services).chooser(str(resolve_device(settings.device)))
        else:
            raise ConfigError(
                f"{settings.steer} ({record.method}) changes the model itself, and a server's can't be: use --engine "
                f"local, or one of system, {', '.join(BY_A_JUDGE)}"
            )

    def _chosen(self, asked: Sequence[Question], chooser: Chooser) -> Iterator[Generation | NoAnswer]:
        """One of several answers to each. A question of which one draw failed is not answered: it is asked again when
        the run goes on."""

        def drawn(draws: Sequence[tuple[int, int]]) -> list[Generation | NoAnswer]:
            questions = [replace(asked[row], seed=seed_of(asked[row].seed, number)) for row, number in draws]
            found = dict(self._service.each(lambda place: self._ask(questions[place]), range(len(questions))))
            for place, (row, _) in enumerate(draws):
                if isinstance(answer := found[place], NoAnswer):
                    failed.setdefault(row, answer)
            return [found[place] for place in range(len(questions))]

        failed: dict[int, NoAnswer] = {}
        strengths = [self._strength] * len(asked)
        chosen = chooser.choose(strengths, drawn, lambda answer: "" if isinstance(answer, NoAnswer) else answer.text)
        for row, answer in enumerate(chosen):
            if row in failed or isinstance(answer, NoAnswer):
                yield failed[row]
            else:
                yield replace(answer, seed=asked[row].seed)

    def _greet(self) -> list[str] | None:
        """The models that the server lists; None if it has no list. Raises ServiceError at once if it is down."""
        try:
            listed = self._service.get("models")
        except Unanswered as error:
            raise ServiceError(
                f"the server of {self._settings.model!r} at {self._service.address} can't be reached ({error}): start "
                "it, or correct --url"
            ) from None
        except ServiceError as error:
            # Some servers have no such list. But a key that is refused here is refused for the rest too.
            if "HTTP 404" in str(error) or "HTTP 405" in str(error):
                return None
            raise
        except (Refused, Malformed):
            return None
        models = listed.get("data") if isinstance(listed, dict) else None
        if not isinstance(models, list):
            return None
        names = [entry["id"] for entry in models if isinstance(entry, dict) and isinstance(entry.get("id"), str)]
        return names[:100]

    def _ask(self, question: Question) -> Generation | NoAnswer:
        settings = self._settings
        turns = [{"role": turn.role, "content": turn.text} for turn in question.prompt.turns]
        system = settings.chat.system
        if self._told is not None:
            theirs = turns.pop(0)["content"] if turns[0]["role"] == "system" else system
            system = in_front(self._told, theirs)
        if system is not None:
            turns.insert(0, {"role": "system", "content": system})
        body = {
            "model": settings.model,
            "messages": turns,
            settings.server.length_field: settings.max_new_tokens,
            "temperature": settings.generation.temperature,
            "top_p": settings.generation.top_p,
            # Servers read it as a 32-bit number or refuse it.
            "seed": question.seed % 2**31,
            "stream": False,
            **settings.server.body,
        }
        try:
            return self._read(question, self._service.post("chat/completions", body))
        except Refused as error:
            if _FILTERED in str(error.body):
                return question.answered(self._label, "", 0, None)
            return NoAnswer(question.id, str(error), final=True)
        except Malformed as error:
            return NoAnswer(question.id, str(error), final=False)
        except Unanswered as error:
            return NoAnswer(question.id, str(error), final=False)

    def _read(self, question: Question, reply: Any) -> Generation:
        """Raises Malformed where the reply holds no answer."""
        choices = reply.get("choices") if isinstance(reply, dict) else None
        first = choices[0] if isinstance(choices, list) and choices else None
        message = first.get("message") if isinstance(first, dict) else None
        if not isinstance(first, dict) or not isinstance(message, dict):
            raise Malformed(f"no choices[0].message: {self._service.scrub(str(reply)[:500])!r}")
        text, finish = message.get("content"), first.get("finish_reason")
        if text is None and finish == _FILTERED:
            text = ""
        if not isinstance(text, str):
            raise Malformed(f"no text in choices[0].message.content: {self._service.scrub(str(reply)[:500])!r}")
        if not is_text(text):
            raise Malformed("the answer holds half a surrogate pair: no valid text")
        usage = reply.get("usage")
        tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
        if isinstance(reply.get("model"), str):
            self._names.add(reply["model"])
        count = int(tokens) if isinstance(tokens, int | float) and math.isfinite(tokens) and tokens >= 0 else 0
        return question.answered(self._label, text, count, _ENDS.get(str(finish)))
