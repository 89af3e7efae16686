"""Log-probabilities of endings and articles against plain loops over the whole model, one text at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import tiny_policy
from small_steering import VECTOR, changed_inputs, folder_of, saved_adapter
from tokenizers.processors import TemplateProcessing

from one_thread import _one_thread as _one_thread
from rewardlm.data.utility import Item
from rewardlm.errors import ModelError, NotAvailableError
from rewardlm.measuring.likelihood import Likelihood
from rewardlm.models.load import Policy
from rewardlm.steering.load import load_steering
from rewardlm.steering.steered import Steering, Unsteered

GOALS = [
    Item(f"Question: {question}\nAnswer:", endings, tuple(len(ending) - 1 for ending in endings), 0)
    for question, endings in [
        ("How do you open a jar?", (" Turn its lid.", " Ask somebody who has stronger hands than you")),
        ("Who?", (" They", " you", " all of them, and the two families who could not agree on the bridge", " no")),
        ("Why ", (" ", " because")),
    ]
]
BLANK = Item("A scene that ends with a blank ", (" and goes on", "."), (12, 1), 1)
ARTICLE = Item("", ("Tell me a story about a small town, its river, and the two families. " * 9,), (120,), None)


def ids(policy: Policy, text: str) -> list[int]:
    return list(policy.tokenizer(text, add_special_tokens=False)["input_ids"])


@torch.no_grad()
def naive(policy: Policy, before: Sequence[int], after: Sequence[int]) -> float:
    """ln p of ``after``, token by token, each by a pass of its own."""
    total, tokens = 0.0, list(before)
    for token in after:
        logits = policy.model(input_ids=torch.tensor([tokens])).logits[0, -1].double()
        total += float(logits.log_softmax(-1)[token])
        tokens.append(token)
    return total


def found(
    policy: Policy, items: Sequence[Item], steering: Steering | None = None, strength: float = 0.0, **how: Any
) -> Any:
    with (steering or Unsteered()).on(policy) as steered:
        return Likelihood(steered, strength, **{"window": 1024, "batch_tokens": 200, **how}).of(items)


def test_endings_are_summed_after_their_context() -> None:
    policy = tiny_policy()
    got = found(policy, [*GOALS, BLANK])
    for item, values in zip([*GOALS, BLANK], got, strict=True):
        for ending, value in zip(item.endings, values, strict=True):
            before = ids(policy, item.context.rstrip())
            whole = ids(policy, item.context + ending)
            assert value == pytest.approx(naive(policy, before, whole[len(before) :]), abs=1e-4)


@pytest.mark.parametrize("window", [7, 40, 1024])
def test_running_text_is_read_in_windows_and_each_token_counts_once(window: int) -> None:
    policy = tiny_policy()
    tokens = ids(policy, ARTICLE.endings[0])
    assert len(tokens) % window
    wanted = 0.0
    for place, token in enumerate(tokens):
        # The window of the place; the last one ends where the text does.
        start = min(place // window * window, max(0, len(tokens) - window))
        before = [policy.tokenizer.eos_token_id if start == 0 else tokens[start - 1], *tokens[start:place]]
        wanted += naive(policy, before, [token])
    assert found(policy, [ARTICLE], window=window)[0] == [pytest.approx(wanted, abs=1e-3)]


def test_a_model_with_few_positions_has_a_smaller_window_and_loses_the_beginning_of_a_context() -> None:
    policy = tiny_policy()
    policy.causal_lm.config.max_position_embeddings = 24
    with Unsteered().on(policy) as steered:
        reader = Likelihood(steered, 0.0, window=1024, batch_tokens=200)
        assert reader.window == 23
        whole, before = (ids(policy, text) for text in (GOALS[1].context + GOALS[1].endings[2], GOALS[1].context))
        after = whole[len(before) :]
        wanted = naive(policy, before[-(24 - len(after)) :], after)
        assert reader.of([GOALS[1]])[0][2] == pytest.approx(wanted, abs=1e-4)
        with pytest.raises(ModelError, match="leaves no room for its context in the 24 positions"):
            reader.of([Item("Context", (" word" * 60,), (5,), 0)])


def test_a_start_token_stands_in_front_where_the_tokenizer_writes_it() -> None:
    policy = tiny_policy()
    policy.tokenizer.bos_token = "<|im_start|>"
    start = policy.tokenizer.bos_token_id
    plain = found(policy, GOALS[:1])[0][0]
    before = ids(policy, GOALS[0].context)
    after = ids(policy, GOALS[0].context + GOALS[0].endings[0])[len(before) :]
    assert plain == pytest.approx(naive(policy, before, after), abs=1e-4)
    policy.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", start)]
    )
    assert found(policy, GOALS[:1])[0][0] == pytest.approx(naive(policy, [start, *before], after), abs=1e-4)
    assert found(policy, [ARTICLE])[0][0] == pytest.approx(
        naive(policy, [start], ids(policy, ARTICLE.endings[0])), abs=1e-3
    )


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("adapters")
    made = {name: saved_adapter(tiny_policy, folder / name, seed, 0.3) for seed, name in enumerate("ab")}
    return lambda name: made["a" if name == "expert" else "b"]


@pytest.mark.parametrize(
    "method", ["system", "activation", "ablation", "gated", "dexperts", "selfdebias", "task-vector", "profs"]
)
def test_strength_0_is_the_unsteered_model_and_others_are_not(method: str, adapters: Callable[[str], Path]) -> None:
    steering = load_steering(folder_of(method, adapters))
    items = [*GOALS, ARTICLE]
    plain = found(tiny_policy(), items)
    assert found(tiny_policy(), items, steering, 0.0) == plain
    strength = {"system": 1.0, "selfdebias": 1e4, "dexperts": 0.1}.get(method, 2.0)
    if method == "dexperts":
        # Text outside of the base's nucleus is impossible with its filter.
        with pytest.raises(ModelError, match="NaN or infinity"):
            found(tiny_policy(), items, steering, strength)
    else:
        assert all(a != b for a, b in zip(found(tiny_policy(), items, steering, strength), plain, strict=True))


def test_a_direction_on_answers_changes_endings_and_all_of_an_article(adapters: Callable[[str], Path]) -> None:
    """Against a hook of the test's own, on the positions that predict what is summed."""
    policy = tiny_policy()
    layer = policy.causal_lm.base_model.layers[1]
    steering = load_steering(folder_of("activation", adapters))
    got = found(policy, [GOALS[0], ARTICLE], steering, 2.0, window=30)

    def steered(before: list[int], after: list[int], counted: int) -> float:
        def change(states: torch.Tensor) -> torch.Tensor:
            states = states.clone()
            states[:, len(before) - 1 : -1] += 2.0 * VECTOR
            return states

        with changed_inputs(layer, change), torch.no_grad():
            logits = policy.model(input_ids=torch.tensor([[*before, *after]])).logits[0].double().log_softmax(-1)
        values = [float(logits[len(before) - 1 + place, token]) for place, token in enumerate(after)]
        return sum(values[len(values) - counted :])

    before = ids(policy, GOALS[0].context)
    after = ids(policy, GOALS[0].context + GOALS[0].endings[1])[len(before) :]
    assert got[0][1] == pytest.approx(steered(before, after, len(after)), abs=1e-3)
    tokens = ids(policy, ARTICLE.endings[0])
    wanted = 0.0
    for start in range(0, len(tokens), 30):
        end = min(start + 30, len(tokens))
        first = end - 30
        context = [tokens[first - 1]] if first else [policy.tokenizer.eos_token_id]
        wanted += steered(context, tokens[first:end], end - start)
    assert got[1][0] == pytest.approx(wanted, abs=1e-2)


def test_a_system_prompt_stands_in_front_of_a_plain_text(adapters: Callable[[str], Path]) -> None:
    policy, folder = tiny_policy(), folder_of("system", adapters)
    (opening,) = [ids(policy, f"{folder.record.settings['prompt']}\n\n")]
    before = ids(policy, GOALS[0].context)
    after = ids(policy, GOALS[0].context + GOALS[0].endings[0])[len(before) :]
    got = found(policy, [GOALS[0], ARTICLE], load_steering(folder), 1.0)
    assert got[0][0] == pytest.approx(naive(policy, [*opening, *before], after), abs=1e-4)
    assert got[1][0] == pytest.approx(naive(policy, opening, ids(policy, ARTICLE.endings[0])), abs=1e-3)


@pytest.mark.parametrize("method", ["best-of-n", "pplm"])
def test_methods_without_probabilities_say_so(method: str, adapters: Callable[[str], Path]) -> None:
    with pytest.raises(NotAvailableError, match="strength 0"):
        found(tiny_policy(), GOALS, load_steering(folder_of(method, adapters)), 2.0)
