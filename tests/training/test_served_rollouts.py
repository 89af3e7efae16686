"""Rollouts over HTTP: a real server with a model of its own, the adapter that it gets, the weights that it needs."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file

from fake_service import Asked, FakeService, Reply
from rewardlm.config import GenerationSettings, ModelSettings, RlafSettings
from rewardlm.errors import RunError, ServiceError
from rewardlm.models.generate import Request, answering, generate
from rewardlm.models.load import load_policy
from rewardlm.models.logprobs import score_rows
from rewardlm.models.lora import load_adapter
from rewardlm.runs import Run
from rewardlm.training import rlaf
from rewardlm.training.rlaf import train
from transformers_serve import OFFLINE, serving

TINY = {"model": "tiny", "device": "cpu", "dtype": "float32"}
PLAIN = {"transform": "probability", "terms": {"refusal": 0, "similarity": 0, "counter_narrative": 0}}


class Server:
    """What vLLM does with the four requests, on a model of its own: adapters by name, token ids in, token ids out."""

    def __init__(self, service: FakeService) -> None:
        self.service = service
        self.policy = load_policy(ModelSettings(**TINY))
        self.loaded: dict[str, dict[str, torch.Tensor]] = {}
        self.drawn: list[tuple[str, list[int], list[int]]] = []
        self.spoil = lambda choice: choice
        self._lock = threading.Lock()
        self._has_adapter = False
        service.answer = self.answer

    def answer(self, asked: Asked) -> Reply:
        with self._lock:
            if asked.path == "/v1/load_lora_adapter":
                folder = Path(asked.body["lora_path"])
                if not self._has_adapter:
                    load_adapter(self.policy, folder)
                    self._has_adapter = True
                self.loaded[asked.body["lora_name"]] = load_file(str(folder / "adapter_model.safetensors"))
                return Reply(f"Success: LoRA adapter '{asked.body['lora_name']}' added successfully.")
            if asked.path == "/v1/unload_lora_adapter":
                del self.loaded[asked.body["lora_name"]]
                return Reply("Success: LoRA adapter removed successfully.")
            return self.complete(asked.body)

    def complete(self, body: dict[str, Any]) -> Reply:
        assert body["temperature"] == body["top_p"] == 1.0
        if body["model"] not in self.loaded:
            return Reply({"error": {"message": f"The model {body['model']} does not exist."}}, status=404)
        with torch.no_grad():
            for name, parameter in self.policy.model.named_parameters():
                if "lora_" in name:
                    parameter.copy_(self.loaded[body["model"]][name.replace(".default.", ".")])
        with answering(self.policy):
            [found] = generate(
                self.policy,
                [Request(tuple(body["prompt"]), body["seed"])],
                max_new_tokens=body["max_tokens"],
                sampling=GenerationSettings(),
            )
        self.drawn.append((body["model"], body["prompt"], found.tokens))
        choice = {
            "index": 0, "text": "", "finish_reason": found.finish, "token_ids": found.tokens,
            "logprobs": {
                "tokens": [f"token_id:{token}" for token in found.tokens], "token_logprobs": found.logprobs.tolist(),
            },
        }  # fmt: skip
        return Reply({"choices": [self.spoil(choice)]})


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def server() -> Iterator[Server]:
    service = FakeService()
    yield Server(service)
    service.close()


def settings(server: Server, **changes) -> RlafSettings:
    rollout = {"url": server.service.url, "tries": 1, **changes.pop("rollout", {})}
    return RlafSettings(
        **{
            **TINY, "algorithm": "grpo", "batch_size": 8, "max_new_tokens": 6, "steps": 4, "rewards": PLAIN,
            "witness": [], "reward": ["lexical"], "learning_rate": 2e-2, "rollout": rollout, **changes,
        }
    )  # fmt: skip


def metrics(run: Run) -> list[dict]:
    return list(run.read("metrics"))


@pytest.mark.slow
def test_the_server_draws_from_the_policy_as_it_is_and_its_weights_are_one(server, tmp_path, monkeypatch):
    learnt, update = [], rlaf.update
    loaded: list[int] = []

    def noted(*given):
        learnt.append(given[2].rollouts)
        loaded.append(len(server.loaded))
        return update(*given)

    monkeypatch.setattr(rlaf, "update", noted)
    said: list[str] = []
    run = train(settings(server), tmp_path / "run", say=said.append)
    lines = metrics(run)
    for line, rollouts in zip(lines, learnt, strict=True):
        assert line["sampling_gap"] < 1e-4
        assert line["weight_mean"] == pytest.approx(1, abs=1e-3)
        assert line["first_ratio"] == pytest.approx(1, abs=1e-4)
        mine = [(list(prompt), response) for prompt, response in zip(rollouts.prompts, rollouts.responses, strict=True)]
        assert all((prompt, response) in [(p, t) for _, p, t in server.drawn] for prompt, response in mine)
    assert abs(lines[-1]["kl"]) > 0.01  # so the adapter that came to the server was no zero
    assert len({name for name, *_ in server.drawn}) == 4
    assert any("answers are drawn by a server" in text for text in said)
    # One adapter at a time, and none is left behind, on the server or in the run.
    assert max(loaded) == 1
    assert not server.loaded
    assert not (run.path / "served").exists()
    assert "127.0.0.1" in json.dumps(run.meta["settings"]["rollout"])


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_answers_of_an_older_adapter_are_weighted_by_the_policys_own_probabilities(
    server, tmp_path, monkeypatch, algorithm
):
    """π/μ of each token, and of each answer where the ratio is an answer's, against plain passes of both adapters."""
    seen, update = [], rlaf.update
    names: list[int] = []

    def noted(learner, chosen, batch, *more):
        adapter = {
            name.replace(".default.", "."): p.detach().clone()
            for name, p in learner.policy.model.named_parameters()
            if "lora_" in name
        }
        seen.append((batch, adapter))
        names.append(len({name for name, *_ in server.drawn}))
        return update(learner, chosen, batch, *more)

    monkeypatch.setattr(rlaf, "update", noted)
    run = train(settings(server, algorithm=algorithm, rollout={"sync_every": 3}, importance_cap=1.5), tmp_path / "run")
    lines = metrics(run)
    assert names == [1, 1, 1, 2]
    assert [line["sampling_gap"] > 1e-3 for line in lines] == [False, True, True, False]

    batch, adapter = seen[2]
    rollouts, mask = batch.rollouts, batch.rollouts.response_mask
    policy = server.policy

    def under(weights: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            for name, parameter in policy.model.named_parameters():
                if "lora_" in name:
                    parameter.copy_(weights[name.replace(".default.", ".")])
        return score_rows(policy.causal_lm, rollouts.prompts, rollouts.responses, 10**6)[0]

    own, older = under(adapter), under(seen[0][1])
    for row, response in enumerate(rollouts.responses):
        gaps = (own[row, : len(response)] - older[row, : len(response)]).tolist()
        for t, gap in enumerate(gaps):
            wanted = min(1.5, math.exp(sum(gaps) if algorithm == "rloo" else gap))
            assert float(batch.importance[row, t]) == pytest.approx(wanted, rel=1e-3)
    assert float(batch.importance[mask].max()) == pytest.approx(1.5)
    assert float(batch.importance[mask].min()) < 0.9
    # What the loss calls old is the policy before the update, whoever drew.
    torch.testing.assert_close(rollouts.logprobs[mask], own[mask], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_a_server_that_goes_away_ends_the_run_and_the_same_command_goes_on(server, tmp_path):
    chosen = settings(server, steps=3)
    answer, calls = server.service.answer, []

    def falls(asked: Asked) -> Reply:
        calls.append(asked.path)
        return Reply("gone", status=503) if calls.count("/v1/completions") > 12 else answer(asked)

    server.service.answer = falls
    with pytest.raises(ServiceError, match=r"the server that draws rollouts at http://127.* HTTP 503"):
        train(chosen, tmp_path / "run")
    assert Run.open(tmp_path / "run").meta["status"] == "stopped"
    server.service.answer = answer
    run = train(chosen, tmp_path / "run")
    assert [line["step"] for line in metrics(run)] == [1, 2, 3]
    assert all(line["sampling_gap"] < 1e-4 for line in metrics(run))  # it was given the adapter of the checkpoint


def _without(*names: str):
    return lambda choice: {name: value for name, value in choice.items() if name not in names}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_without("logprobs"), "lacks its tokens' ids or log-probabilities"),
        (lambda c: {**c, "token_ids": None, "logprobs": {**c["logprobs"], "tokens": ["a"]}}, "lacks its tokens' ids"),
        (lambda c: {**c, "logprobs": {"token_logprobs": c["logprobs"]["token_logprobs"][1:]}}, "lacks its tokens' ids"),
        (lambda c: {**c, "logprobs": {"token_logprobs": [0.7] * len(c["token_ids"])}}, "lacks its tokens' ids"),
        (lambda c: {**c, "finish_reason": "stop", "token_ids": [5] * len(c["token_ids"])}, "expected stop after the"),
        (lambda c: {**c, "finish_reason": "abort"}, "finish_reason is 'abort'"),
        (lambda c: {**c, "finish_reason": "length", "token_ids": [10**6] * len(c["token_ids"])}, "another model"),
    ],
)
def test_a_reply_that_lacks_what_training_needs_is_refused(server, tmp_path, spoil, said):
    server.spoil = spoil
    with pytest.raises(ServiceError, match=said):
        train(settings(server, steps=1), tmp_path / "run")


@pytest.mark.slow
def test_names_of_tokens_do_where_there_are_no_ids(server, tmp_path):
    server.spoil = _without("token_ids")
    assert metrics(train(settings(server, steps=1), tmp_path / "run"))[0]["sampling_gap"] < 1e-4


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply({"detail": "Not Found"}, status=404), "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
        (Reply({"error": {"message": "LoRA rank 64 is greater than max_lora_rank 16."}}, status=400), "rank 64 is gre"),
    ],
)
def test_a_server_that_takes_no_adapter_is_no_server_for_this(server, tmp_path, reply, said):
    server.service.answer = lambda _: reply
    with pytest.raises(ServiceError, match=said):
        train(settings(server), tmp_path / "run")


@pytest.mark.slow
def test_transformers_serve_is_refused_in_one_line(tmp_path):
    """The real one, through the command line. The second half is why docs/rlaf.md says that it can't be used: where it
    fails, transformers has learnt something, and we should too.
    """
    pytest.importorskip("fastapi")
    policy = load_policy(ModelSettings(**TINY))
    folder = tmp_path / "model"
    policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    with serving(folder, tmp_path / "serve.log") as url:
        command = [sys.executable, "-m", "rewardlm", "rlaf", str(folder), "--reward", "lexical", "--steps", "1"]
        more = ["--batch-size", "4", "--device", "cpu", "--out", str(tmp_path / "run"), f"rollout.url={url}"]
        done = subprocess.run([*command, *more], capture_output=True, text=True, env=OFFLINE, timeout=300)
        assert done.returncode == 1, done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        (said,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert done.stderr.splitlines()[-1] == said
        parts = ("the server that draws rollouts", f"nothing at {url}/load_lora_adapter (HTTP 404", "expected a server "
                 "that takes LoRA adapters", "token ids and log-probabilities", "start vLLM with --enable-lora",
                 "`transformers serve` does neither")  # fmt: skip
        places = [said.find(part) for part in parts]
        assert min(places) >= 0
        assert places == sorted(places)
        assert not (tmp_path / "run" / "served").exists()
        assert not (tmp_path / "run" / "adapter").exists()

        def ask(path: str, **body: Any) -> httpx.Response:
            return httpx.post(f"{url}/{path}", json={"model": str(folder), "max_tokens": 3, **body}, timeout=60)

        talk = {"messages": [{"role": "user", "content": "Hello"}], "logprobs": True, "top_logprobs": 1}
        for path, body in (("completions", {"prompt": "Hello", "logprobs": 1}), ("chat/completions", talk)):
            reply = ask(path, **body)
            assert reply.status_code == 200, reply.text
            (choice,) = reply.json()["choices"]
            assert choice["finish_reason"] in ("length", "stop")
            assert choice.keys().isdisjoint({"logprobs", "token_ids"})
        assert "prompt must be a string" in ask("completions", prompt=[1, 2, 3]).text
        assert "return_token_ids" in ask("completions", prompt="Hello", return_token_ids=True).text


def test_what_a_server_does_before_it_says_its_probabilities_is_not_asked_for(server):
    with pytest.raises(ValueError, match="before temperature and truncation: leave the settings of generation out"):
        settings(server, generation={"temperature": 0.7})


def test_who_draws_the_answers_can_not_change_on_the_way(server, tmp_path):
    """A server's answers are weighted by pi/mu and our own are not, so a run is the one or the other."""
    train(settings(server, steps=1), tmp_path / "served")
    here = settings(server, steps=2, rollout={"url": None})
    with pytest.raises(RunError, match=r"rollout\.url was"):
        train(here, tmp_path / "served")
    train(settings(server, steps=1, rollout={"url": None}), tmp_path / "own")
    with pytest.raises(RunError, match=r"rollout\.url was"):
        train(settings(server, steps=2), tmp_path / "own")


def test_an_adapter_that_was_refused_is_no_result(server, tmp_path):
    """The same folder begins anew with other settings."""
    answer = server.service.answer
    server.service.answer = lambda _: Reply({"error": {"message": "the rank is too large"}}, status=400)
    with pytest.raises(ServiceError, match="too large"):
        train(settings(server, steps=1, lora={"r": 32}), tmp_path / "run")
    assert not (tmp_path / "run" / "served").exists()
    server.service.answer = answer
    assert train(settings(server, steps=1, lora={"r": 4}), tmp_path / "run").meta["status"] == "finished"
