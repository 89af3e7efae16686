"""Passes side by side give what passes in turn give, several do run at once, and a stop or an error is everybody's."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from small_models import VOCABULARY, random_policy
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from rewardlm.models.logprobs import body_and_head, hidden_rows
from rewardlm.models.threads import side_by_side
from rewardlm.stream import Edits, edited
from rewardlm.trunk import attending, scales_by_length

# Longer than any of these tests takes, should one wait for what never comes.
PATIENCE = 30


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    ).eval()


def at_once(model: LlamaForCausalLM, items: int) -> int:
    """How many of ``items`` ran at the same time at most, the first left out."""
    running, most, lock = 0, 0, threading.Lock()

    def work(item: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running) if item else most
        time.sleep(0.05)
        with lock:
            running -= 1
        return item

    assert list(side_by_side(model, work, range(items))) == list(range(items))
    return most


@pytest.mark.usefixtures("four_threads")
def test_the_first_runs_alone_and_the_others_side_by_side(model: LlamaForCausalLM) -> None:
    assert at_once(model, 9) == 4
    assert at_once(model, 3) == 2
    alone = threading.Event()

    def work(item: int) -> bool:
        if item == 0:
            # Were there another one beside it, it would have come by then.
            return not alone.wait(0.2)
        alone.set()
        return True

    assert all(side_by_side(model, work, range(4)))


@pytest.mark.usefixtures("four_threads")
def test_each_thread_has_its_part_of_the_cores_and_the_callers_gradients(model: LlamaForCausalLM) -> None:
    def seen(_: int) -> tuple[int, bool]:
        time.sleep(0.05)
        return torch.get_num_threads(), torch.is_grad_enabled()

    with torch.no_grad():
        _, *others = side_by_side(model, seen, range(3))
    assert others == [(2, False)] * 2
    _, *others = side_by_side(model, seen, range(5))
    assert others == [(1, True)] * 4
    assert torch.get_num_threads() == 4


@pytest.mark.usefixtures("four_threads")
def test_passes_run_in_turn_where_one_would_be_noticed_by_another(model: LlamaForCausalLM) -> None:
    body, _ = body_and_head(model)
    sites = {(0, "in"): body.layers[0]}
    with edited(body, sites, Edits({(0, "in"): lambda states, _: states}, answers_only=False)):
        assert at_once(model, 4) == 1
    assert at_once(model, 4) == 3
    torch.set_num_threads(1)
    assert at_once(model, 4) == 1


@pytest.mark.usefixtures("four_threads")
def test_passes_of_a_quantised_or_large_model_run_in_turn(model: LlamaForCausalLM) -> None:
    for more in (torch.zeros(1, dtype=torch.int8), torch.zeros(1).expand(2**28)):
        other = LlamaForCausalLM(model.config)
        other.register_parameter("more", torch.nn.Parameter(more, requires_grad=False))
        assert at_once(other, 4) == 1


@pytest.mark.usefixtures("four_threads")
def test_passes_run_in_turn_where_rotary_positions_depend_on_a_passes_length(model: LlamaForCausalLM) -> None:
    rotary = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
    assert at_once(LlamaForCausalLM(LlamaConfig(**{**model.config.to_dict(), "rope_parameters": rotary})), 4) == 1
    by_layer = {"sliding_attention": {"rope_type": "default"}, "full_attention": {"rope_type": "longrope"}}
    assert scales_by_length(SimpleNamespace(get_text_config=lambda: SimpleNamespace(rope_parameters=by_layer)))
    assert not scales_by_length(SimpleNamespace(get_text_config=lambda: SimpleNamespace(rope_scaling=None)))


@pytest.mark.usefixtures("four_threads")
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_is_the_callers_and_what_has_not_begun_is_left_out(
    model: LlamaForCausalLM, error: type[BaseException]
) -> None:
    begun = []

    def work(item: int) -> int:
        begun.append(item)
        time.sleep(0.02)
        if item == 2:
            raise error("of the third")
        return item

    found = side_by_side(model, work, range(100))
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(error, match="of the third"):
        next(found)
    assert len(begun) < 20


@pytest.mark.usefixtures("four_threads")
def test_a_caller_who_stops_leaves_the_rest_out(model: LlamaForCausalLM) -> None:
    begun = []

    def work(item: int) -> int:
        begun.append(item)
        time.sleep(0.02)
        return item

    for item in side_by_side(model, work, range(100)):
        if item == 3:
            break
    assert len(begun) < 20
    left = len(begun)
    time.sleep(0.1)
    assert len(begun) == left


@pytest.mark.usefixtures("four_threads")
@pytest.mark.parametrize("name", ["falcon_grouped", "gpt_neox", "gpt2"])
def test_passes_give_side_by_side_what_they_give_in_turn(name: str) -> None:
    """Thirty passes, many of which switch the model's attention; each is long enough to meet others."""
    lm = random_policy(name).causal_lm
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(5, VOCABULARY, (6 + n,), generator=generator).tolist() for n in range(30)]
    responses = [torch.randint(5, VOCABULARY, (40,), generator=generator).tolist() for _ in prompts]

    def work(row: int) -> Tensor:
        with torch.no_grad():
            return hidden_rows(lm, prompts, responses, [row, (row + 7) % 30])

    attention = lm.config._attn_implementation
    in_turn = [work(row) for row in range(30)]
    for one, other in zip(in_turn, side_by_side(lm, work, range(30)), strict=True):
        torch.testing.assert_close(other, one, atol=1e-5, rtol=0)
    assert lm.config._attn_implementation == attention


def test_the_last_of_several_passes_puts_the_attention_back() -> None:
    body = SimpleNamespace(config=SimpleNamespace(_attn_implementation="sdpa"))
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with attending(body, "another"):
            inside.set()
            leave.wait(PATIENCE)

    thread = threading.Thread(target=other)
    with attending(body, "another"):
        thread.start()
        assert inside.wait(PATIENCE)
    # The first one left; the second still runs.
    assert body.config._attn_implementation == "another"
    leave.set()
    thread.join(PATIENCE)
    assert body.config._attn_implementation == "sdpa"
    with attending(body, "eager"), attending(body, "another"):
        assert body.config._attn_implementation == "another"
    assert body.config._attn_implementation == "sdpa"
