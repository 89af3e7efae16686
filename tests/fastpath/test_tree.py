"""Rows run as a tree: which tokens it has and what they see, by loops; statistics and gradients are test_logprobs'."""

from __future__ import annotations

import pytest
import torch
from small_models import CONFIGS, random_policy
from transformers import DynamicCache

from rewardlm.fastpath import Tree, predicting_states, runs_trees, tree_of, trees_in_turn
from rewardlm.models.logprobs import body_and_head, pieces, shared_prefix

CPU = torch.device("cpu")
PROMPTS = [[7, 8, 9, 20], [7, 8, 9, 30, 31], [7, 8, 9, 20], [7, 8, 9, 40], [7, 8, 9, 20]]
RESPONSES = [[1, 2, 3], [4], [5], [6, 2], []]
TREES = ["tiny", "gpt2", "gpt_neox", "gpt_neox_serial", "opt", "qwen2", "qwen3", "gemma"]


def histories(tree: Tree, first: int = 0) -> list[list[int]]:
    """Of each token, the positions that it sees, by the padded tables alone; those before ``first`` are in a cache."""
    found: list[list[int]] = [[] for _ in tree.tokens]
    width = tree.queries.shape[1]
    for place in tree.places.tolist():
        stretch, query = divmod(place, width)
        seen = [int(key) for key, sees in zip(tree.keys[stretch], tree.sees[stretch, 0, query], strict=True) if sees]
        found[int(tree.queries[stretch, query])] = seen
    return [[place - first for place in seen] for seen in found]


def test_every_token_sees_its_own_history_and_is_there_once() -> None:
    tree = tree_of(PROMPTS, RESPONSES, 3, CPU)
    # 7 8 9 | 20 | 1 2 | 30 31 | (5 is last: nothing follows) | 40 6 | and the empty answer adds none
    assert sorted(tree.tokens.tolist()) == sorted([7, 8, 9, 20, 1, 2, 30, 31, 40, 6])
    seen = histories(tree)
    tokens = tree.tokens.tolist()
    texts = [tuple(tokens[place] for place in places) for places in seen]
    wanted = {
        tuple([*prompt, *response[:-1]][: end + 1])
        for prompt, response in zip(PROMPTS, RESPONSES, strict=True)
        for end in range(len(prompt) + max(len(response) - 1, 0))
    }
    assert set(texts) == wanted
    assert len(texts) == len(wanted)
    assert tree.positions.tolist() == [len(text) - 1 for text in texts]
    rows = [(p, r[:i]) for p, r in zip(PROMPTS, RESPONSES, strict=True) for i in range(len(r))]
    assert [texts[place] for place in tree.predicting.tolist()] == [(*prompt, *before) for prompt, before in rows]


def test_every_place_sees_something() -> None:
    """Padding too: a softmax over nothing would be NaN, and 0 · NaN is NaN in every gradient."""
    assert bool(tree_of(PROMPTS, RESPONSES, 3, CPU).sees.any(-1).all())


def test_rows_in_turn_are_read_once_each_from_stop_to_stop() -> None:
    prompts, responses = [[7, 8], [7, 8], [5]], [[1, 2, 3, 4], [1, 6], [9]]
    stops = [[0, 2, 3], [1], []]
    trees = trees_in_turn(prompts, responses, stops, CPU)
    assert [tree.tokens.tolist() for tree in trees] == [[7, 8, 7, 8, 1], [1, 2], [3]]
    tokens = [token for tree in trees for token in tree.tokens.tolist()]
    texts, first = [], 0
    for tree in trees:
        # What a tree sees counts from the first token of all, as in the cache.
        own = [tuple(tokens[place] for place in seen) for seen in histories(tree)]
        assert tree.positions.tolist() == [len(text) - 1 for text in own]
        assert (tree.queries.min(), tree.queries.max()) == (0, len(tree.tokens) - 1)
        texts.append([own[place] for place in tree.predicting.tolist()])
        first += len(tree.tokens)
        # Of what is in the cache by then, nothing but this tree comes after the last token that is seen.
        assert int(tree.keys.max()) == first - 1
    # The texts that the answers' tokens up to the stops are predicted from.
    assert texts == [[(7, 8), (7, 8), (7, 8, 1)], [(7, 8, 1), (7, 8, 1, 2)], [(7, 8, 1, 2, 3)]]


@pytest.mark.parametrize("name", TREES)
def test_after_a_prefix_that_a_cache_holds_it_is_the_same(name: str) -> None:
    body, _ = body_and_head(random_policy(name).causal_lm)
    assert runs_trees(body)
    answers = [[1, 2, 3], [4], [5], [6, 2], [9]]
    with torch.inference_mode():
        whole = predicting_states(body, tree_of(PROMPTS, answers, 3, CPU))
        cache = DynamicCache()
        predicting_states(body, tree_of([PROMPTS[0][:3]], [[0]], 0, CPU), cache)
        tree = tree_of(PROMPTS, answers, 3, CPU, held=True)
        assert 7 not in tree.tokens.tolist()
        after = predicting_states(body, tree, cache)
    torch.testing.assert_close(after, whole, atol=1e-5, rtol=1e-4)
    assert cache.get_seq_length() == 3 + len(tree.tokens)


@pytest.mark.slow
def test_models_that_look_elsewhere_for_what_sees_what_are_not_run_so() -> None:
    assert {name for name in CONFIGS if runs_trees(body_and_head(random_policy(name).causal_lm)[0])} | {"tiny"} == set(
        TREES
    )


@pytest.mark.parametrize("name", ["tiny", "bloom"])
def test_pieces_hold_every_row_once_within_the_budget(name: str) -> None:
    model = random_policy(name).causal_lm
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randint(5, 50, (int(n),), generator=generator).tolist() for n in torch.randint(1, 30, (12,))]
    prompts = [[1, 2, 3, *starts[i % 12]] for i in range(60)]
    answers = [[5] * int(n) for n in torch.randint(1, 40, (60,), generator=generator)]
    got = pieces(model, prompts, answers, 150)
    assert sorted(row for piece in got for row in piece) == list(range(60))
    for piece in got:
        own, said = [prompts[row] for row in piece], [answers[row] for row in piece]
        if name == "tiny":
            size = len(tree_of(own, said, shared_prefix(own), CPU).tokens)
        else:
            size = len(piece) * max(len(p) + len(a) for p, a in zip(own, said, strict=True))
        assert len(piece) == 1 or size <= 150
    assert max(map(len, got)) > 3
    assert pieces(model, [], [], 150) == []


def test_answers_to_one_prompt_share_a_piece() -> None:
    model = random_policy("tiny").causal_lm
    prompts = [[1, 2, 3, *range(10 + k, 40 + k)] for k in (0, 50, 0, 50, 0, 50)]
    assert sorted(map(sorted, pieces(model, prompts, [[5, 6]] * 6, 40))) == [[0, 2, 4], [1, 3, 5]]
