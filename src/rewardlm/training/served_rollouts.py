"""Rollouts that a server draws (vLLM, or whatever speaks as it does): the adapter goes there, tokens come back.

The protocol is vLLM's:

* ``POST load_lora_adapter`` {lora_name, lora_path} gives it the policy's adapter, under a new name each time, from a
  folder that both can read; ``POST unload_lora_adapter`` {lora_name} takes the one before away;
* ``POST completions`` draws an answer to a prompt's token ids by that adapter, at temperature 1, and returns its
  tokens' ids and log-probabilities.

These are μ, the probabilities that tokens were drawn with. The server may round otherwise and its adapter may be some
steps old, so whatever is learnt is weighted by π/μ (``objectives.importance``). What the policy itself gives to the
tokens is computed here, as always.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rewardlm.config import RlafSettings
from rewardlm.errors import ServiceError
from rewardlm.models.generate import Sampled
from rewardlm.models.load import Policy
from rewardlm.models.lora import save_adapter
from rewardlm.services import Malformed, Refused, Service, Unanswered
from rewardlm.training.rollouts import Draft, StepPrompt, answer_seed
from rewardlm.types import Finish

_ENDS: dict[str, Finish] = {"stop": "stop", "length": "length"}
_TOKEN = "token_id:"


class ServedRollouts:
    """Asks ``settings.rollout.url``; ``folder`` is where adapters are handed over."""

    def __init__(self, settings: RlafSettings, policy: Policy, folder: Path) -> None:
        self._settings, self._policy = settings, policy
        self._folder = folder.absolute()
        self._service = Service(
            settings.rollout,
            what="the server that draws rollouts",
            section="rollout",
            gone="expected a server that takes LoRA adapters while it runs, and returns token ids and "
            "log-probabilities: start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, and give "
            "rollout.url as far as /v1 (`transformers serve` does neither)",
        )
        self.adapter: str | None = None

    def __enter__(self) -> ServedRollouts:
        """Take away what an attempt before this one, which was stopped, left on the server."""
        for left in sorted(self._folder.glob("*")):
            self._take_away(left.name)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        """Give up what is under way. After an error the server is not asked for more: it may be the cause."""
        if kind is None and self.adapter is not None:
            self._take_away(self.adapter)
        self._service.close()
        with contextlib.suppress(OSError):  # after an error it still holds the adapter
            self._folder.rmdir()

    def is_due(self, step: int) -> bool:
        """Whether the server must have the adapter as it is now, before a step counted from 0."""
        return self.adapter is None or step % self._settings.rollout.sync_every == 0

    def sync(self, step: int) -> str:
        """Give the server the policy's adapter, and return its name there. Raises ServiceError where it refuses it."""
        name, before = f"rewardlm-{step}-{uuid.uuid4().hex[:8]}", self.adapter
        folder = self._folder / name
        save_adapter(self._policy.model, folder)
        try:
            self._tell("load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        except ServiceError:
            # It is no result: a run that has none begins anew with other settings.
            shutil.rmtree(folder)
            with contextlib.suppress(OSError):
                self._folder.rmdir()
            raise
        if before is not None:
            self._take_away(before)
        return name

    def sample(self, prompts: Sequence[StepPrompt], step: int) -> Draft:
        """As ``rollouts.sample``, by the server. Raises ServiceError where an answer can't be had or read: the same
        command goes on later."""
        samples = self._settings.samples_per_prompt
        asked = [(prompt, k) for prompt in prompts for k in range(samples)]
        found: dict[int, Sampled] = {}
        try:
            for row, sampled in self._service.each(lambda row: self._draw(row, *asked[row], step), range(len(asked))):
                found[row] = sampled
        except (Refused, Malformed, Unanswered) as error:
            raise ServiceError(f"{self._service.what} at {self._service.address}: {error}") from None
        drawn = [found[row] for row in range(len(asked))]
        return Draft(
            [prompt.index for prompt, _ in asked],
            [prompt.ids for prompt, _ in asked],
            drawn,
            [self._policy.chat.decode(answer.tokens) for answer in drawn],
        )

    def _take_away(self, adapter: str) -> None:
        with contextlib.suppress(ServiceError):  # The server may have forgotten it by itself.
            self._tell("unload_lora_adapter", {"lora_name": adapter})
        shutil.rmtree(self._folder / adapter, ignore_errors=True)

    def _draw(self, row: int, prompt: StepPrompt, k: int, step: int) -> Sampled:
        settings = self._settings
        body = {
            "model": self.adapter,
            "prompt": list(prompt.ids),
            "max_tokens": settings.max_new_tokens,
            # A server may have other defaults, the model's own among them.
            **{"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "n": 1},
            **{"presence_penalty": 0.0, "frequency_penalty": 0.0},
            # Servers read it as a 32-bit number or refuse it.
            "seed": answer_seed(settings, step, prompt, k) % 2**31,
            "stop_token_ids": sorted(self._policy.end_ids),
            "logprobs": 0,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "stream": False,
        }
        return self._read(row, self._service.post("completions", body))

    def _read(self, row: int, reply: Any) -> Sampled:
        """Raises Malformed where the reply lacks what training needs."""
        choices = reply.get("choices") if isinstance(reply, dict) else None
        first = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(first, dict):
            raise Malformed(f"no choices[0]: {self._service.shown(reply)[:500]!r}")
        given = first.get("logprobs")
        given = given if isinstance(given, dict) else {}
        tokens, logprobs = _ids(first.get("token_ids"), given.get("tokens")), given.get("token_logprobs")
        if tokens is None or not _are_logprobs(logprobs, len(tokens)):
            raise Malformed(
                "the answer lacks its tokens' ids or log-probabilities, which RL learns from: a server is needed that "
                f"returns both, such as vLLM; got {self._service.shown(first)[:300]!r}"
            )
        finish = _ENDS.get(str(first.get("finish_reason")))
        ends = [token in self._policy.end_ids for token in tokens]
        if finish is None or (finish == "stop") != ends[-1] or any(ends[:-1]):
            raise Malformed(
                f"the answer's finish_reason is {first.get('finish_reason')!r} and its last token {tokens[-1]}: "
                "expected stop after the only end token, or length without one"
            )
        if not 0 <= min(tokens) <= max(tokens) < len(self._policy.causal_lm.get_input_embeddings().weight):
            raise Malformed(f"the answer holds the token {max(tokens)}, which this model lacks: is it another model?")
        drawn = torch.tensor(logprobs, dtype=torch.float32)
        # What the policy makes of them is computed here; see learner.logprobs_and_values.
        return Sampled(row, tokens, drawn, drawn, torch.zeros_like(drawn), None, finish)

    def _tell(self, path: str, body: dict[str, str]) -> None:
        try:
            # vLLM answers with a sentence, which is no JSON.
            with contextlib.suppress(Malformed):
                self._service.post(path, body)
        except (Refused, Unanswered) as error:
            raise ServiceError(
                f"{self._service.what} at {self._service.address} did not take the adapter: {error}"
            ) from None


def _ids(plain: Any, named: Any) -> list[int] | None:
    """An answer's ids, from a list of them or from names such as ``token_id:17``; None where it has none."""
    if isinstance(plain, list) and plain and all(type(token) is int for token in plain):
        return plain
    if isinstance(named, list) and named and all(isinstance(name, str) and name.startswith(_TOKEN) for name in named):
        with contextlib.suppress(ValueError):
            return [int(name.removeprefix(_TOKEN)) for name in named]
    return None


def _are_logprobs(values: Any, n: int) -> bool:
    """Whether these are the log-probabilities of ``n`` tokens: finite and at most 0, but for rounding."""
    return (
        isinstance(values, list)
        and len(values) == n
        and all(type(value) in (int, float) and math.isfinite(value) and value < 1e-3 for value in values)
    )
