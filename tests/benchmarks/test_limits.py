"""The limits' arithmetic on numbers that were worked out by hand, and against the figures that the project quotes."""

from __future__ import annotations

import pytest
from limits import (
    Decoder,
    Machine,
    decode_seconds,
    distinct_prefixes,
    positions_to_weigh,
    prefill_seconds,
    reference_seconds,
    rollout_seconds,
    scorer_seconds,
    update_seconds,
)

# 2·3·5·2 = 60 bytes of cache a position; (70 + 30)·2 = 200 bytes of weights.
SMALL = Decoder(body=70, head=30, layers=3, kv_width=5, width=2)
# SmolLM2-135M: 30 layers of 576 (9 heads, 3 of them KV, of 64) and 1,536, two norms a layer and one at the end.
LAYER = 2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536 + 2 * 576
BODY, HEAD = 30 * LAYER + 576, 49_152 * 576


def smollm2(width: int) -> Decoder:
    return Decoder(BODY, HEAD, layers=30, kv_width=192, width=width)


def test_prefixes_are_counted_once():
    assert distinct_prefixes([]) == 0
    assert distinct_prefixes([(1, 2, 3), (1, 2, 3)]) == 3
    # 1, 12, 123, 124, then 2, 23: equal tokens after other ones are other positions.
    assert distinct_prefixes([[1, 2, 3], [1, 2, 4], [2, 3]]) == 6


def test_prefill_runs_a_shared_prefix_once_and_the_head_for_each_row():
    # Four positions of 2·70 operations, two rows of 2·30, at 10 operations a second.
    assert prefill_seconds(SMALL, Machine(1.0, 10.0), [[1, 2, 3], [1, 2, 4]]) == pytest.approx((4 * 140 + 2 * 60) / 10)


def test_a_step_of_decoding_takes_the_longer_of_reading_and_multiplying():
    # Prompts of 4 and 6 tokens, answers of 3 and 2: step 1 has both rows and 4 + 6 cached positions, step 2 the first
    # row alone with its prompt and one token of its answer, 5 positions. The first tokens came with the prefill.
    read = [200 + 60 * 10, 200 + 60 * 5]
    multiplied = [2 * 100 * 2, 2 * 100 * 1]
    assert decode_seconds(SMALL, Machine(100.0, 1e9), [4, 6], [3, 2]) == pytest.approx(sum(read) / 100)
    assert decode_seconds(SMALL, Machine(1e9, 50.0), [4, 6], [3, 2]) == pytest.approx(sum(multiplied) / 50)
    # At 1 byte and 0.45 operations a second step 1 waits for multiplying (400/0.45 > 800), step 2 for reading
    # (500 > 200/0.45).
    assert decode_seconds(SMALL, Machine(1.0, 0.45), [4, 6], [3, 2]) == pytest.approx(400 / 0.45 + 500)


def test_answers_of_one_token_or_none_need_no_step_of_decoding():
    assert decode_seconds(SMALL, Machine(1.0, 1.0), [4, 6], [1, 1]) == 0
    assert decode_seconds(SMALL, Machine(1.0, 1.0), [], []) == 0


def test_a_rollout_is_its_prefill_and_its_decoding():
    machine, prompts = Machine(100.0, 50.0), [[1, 2, 3, 4], [1, 2, 3, 4, 5, 6]]
    expected = (6 * 140 + 2 * 60) / 50 + max(800 / 100, 400 / 50) + max(500 / 100, 200 / 50)
    assert rollout_seconds(SMALL, machine, prompts, [3, 2]) == pytest.approx(expected)


def test_weighing_and_learning():
    # Four answers to one prompt of three tokens, and nothing follows from a last token: 3 + (2 + 2 + 1 + 0).
    assert positions_to_weigh([[1, 2, 3]] * 4, [3, 3, 2, 1]) == 8
    assert reference_seconds(SMALL, Machine(1.0, 10.0), 8, 9) == pytest.approx((2 * 70 * 8 + 2 * 30 * 9) / 10)
    assert update_seconds(SMALL, Machine(1.0, 10.0), 8, 9, epochs=3) == pytest.approx(
        3 * (4 * 70 * 8 + 4 * 30 * 9) / 10
    )
    assert scorer_seconds(1000, Machine(1.0, 10.0), 7) == pytest.approx(1400.0)


def test_smollm2_has_as_many_weights_as_its_name_says():
    assert BODY + HEAD == 134_515_008


@pytest.mark.parametrize(("width", "rate", "decoded", "learnt"), [(4, 175e9, 650, 325), (2, 410e9, 1_500, 760)])
def test_what_two_cores_can_do_at_most(width: int, rate: float, decoded: int, learnt: int):
    """The four figures that the project set its bars by, for 30 GB/s and these rates; they are rounded."""
    machine, rows, length = Machine(30e9, rate), 256, 33
    seconds = decode_seconds(smollm2(width), machine, [1] * rows, [length] * rows)
    assert rows * (length - 1) / seconds == pytest.approx(decoded, rel=0.02)
    assert 1000 / update_seconds(smollm2(width), machine, 1000, 1000, epochs=1) == pytest.approx(learnt, rel=0.02)


def test_one_row_waits_for_memory():
    machine = Machine(30e9, 410e9)
    seconds = decode_seconds(smollm2(2), machine, [50], [2])
    # 269 MB of weights and 50 positions of 2·30·192·2 = 23,040 bytes.
    assert seconds == pytest.approx((2 * 134_515_008 + 50 * 23_040) / 30e9)
