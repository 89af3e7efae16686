import base64
import json
import random
import zlib

import explorer_sample
import interpretation_sample
import pytest
import report_sample
import typed
from explorer_sample import HOSTILE, PROMPTS, cells, measured, prompt

from rewardlm.measuring import metrics
from rewardlm.reporting.explorer import FLAGS, ExplorerData, answers_for_explorer
from rewardlm.reporting.page import build_report, render_page


def unpacked(data):
    """What a browser gets: inflated and read by other means than ours."""
    packed = data.packed()
    assert packed.isascii()
    assert not set(packed) & set("<>&'\" \n")
    return json.loads(zlib.decompress(base64.b64decode(packed)))


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return explorer_sample.sample_runs(tmp_path_factory.mktemp("explorer"))


def test_answers_stand_side_by_side_by_prompt_and_sample(sample):
    data = answers_for_explorer(sample)
    assert [one.label for one in data.models] == ["PT", "FT", "RL"]
    assert data.rows == [(0, 0), (1, 0), (2, 0), (3, 0)]
    assert [one.texts for one in data.models] == [
        list(answers.values()) for answers in (explorer_sample.PT, explorer_sample.FT, explorer_sample.RL)
    ]
    assert data.answers == 12
    assert [one.text for one in data.prompts] == [one.text for one in PROMPTS]
    assert data.models[0].similarity == [0.9, 0.5, 0.7, 0.1]
    assert data.models[1].similarity == [None] * 4


def test_unscored_is_never_a_number_and_has_its_reason(sample):
    found = unpacked(answers_for_explorer(sample))
    by = {model["label"]: model for model in found["models"]}
    assert by["PT"]["scores"]["witness"] == [0.93, 0.02, 0.4, None]
    assert by["RL"]["scores"]["witness"] == [0.2, 0.81, None, 0.04]
    assert found["reasons"][by["PT"]["reasons"]["witness"]["3"]] == "the text is empty"
    assert found["reasons"][by["RL"]["reasons"]["witness"]["2"]] == "the judge reads English alone"
    assert by["FT"]["reasons"]["witness"] == {}


def test_an_answer_that_a_judge_never_saw_says_so(tmp_path):
    run = measured(
        tmp_path / "a", "A", cells("one", "two", "three", "four"), prompts=PROMPTS, scores={"j": {("p1", 0): 0.5}}
    )
    found = unpacked(answers_for_explorer([run]))["models"][0]
    assert found["scores"]["j"] == [0.5, None, None, None]
    assert set(found["reasons"]["j"]) == {"1", "2", "3"}


def test_the_kinds_of_answers(sample):
    kinds = [
        [{name for bit, name in enumerate(FLAGS) if flags >> bit & 1} for flags in model.flags]
        for model in answers_for_explorer(sample).models
    ]
    assert kinds[0] == [set(), set(), set(), {"empty"}]
    assert kinds[1] == [set(), set(), {"refusal"}, set()]
    assert kinds[2] == [{"truncated"}, {"truncated"}, {"truncated", "other_script"}, {"truncated"}]


def test_judges_that_were_a_reward_come_last_unless_one_is_asked_for(sample):
    assert answers_for_explorer(sample).judges == ["witness", "lexical"]
    assert answers_for_explorer(sample, judge="lexical").judges == ["lexical", "witness"]
    models = unpacked(answers_for_explorer(sample))["models"]
    assert [model["reward_of"] for model in models] == [[], [], ["lexical"]]


def test_runs_of_other_prompts_and_more_samples_stand_beside_each_other(tmp_path):
    one = measured(tmp_path / "a", "A", {("p1", 0): "a10", ("p1", 1): "a11"}, prompts=PROMPTS[:1])
    others = [prompt("p9", "Another"), prompt("p1", "Of the same id, but other words")]
    two = measured(tmp_path / "b", "A", {("p9", 0): "b90", ("p1", 1): "b11"}, prompts=others)
    data = answers_for_explorer([one, two])
    table = {
        (data.prompts[place].text, sample): [model.texts[row] for model in data.models]
        for row, (place, sample) in enumerate(data.rows)
    }
    assert table == {
        ("My neighbour is", 0): ["a10", None],
        ("My neighbour is", 1): ["a11", None],
        ("Another", 0): [None, "b90"],
        ("Of the same id, but other words", 1): [None, "b11"],
    }
    assert [model.label for model in data.models] == ["A", "A (2)"]
    assert data.answers == 4


def test_short_scores_stay_in_their_bucket_and_on_their_side():
    draw = random.Random(3)
    edges = [0.33, 0.66, 0.5, 0.0, 1.0]
    values = [min(1, max(0, edge + draw.choice([0, 1, -1]) * 10 ** -draw.uniform(1, 12))) for edge in edges * 400]
    for inclusive in (False, True):
        data = ExplorerData([prompt("p", "x", value) for value in values], [], [], [], 0, inclusive=inclusive)
        for value, short in zip(values, data.dump()["prompts"]["toxicity"], strict=True):
            assert abs(short - value) < 1e-4
            assert metrics.bucket_name(short) == metrics.bucket_name(value)
            assert (short >= 0.5 if inclusive else short > 0.5) == (value >= 0.5 if inclusive else value > 0.5)
        lengths = [len(repr(short)) for short in data.dump()["prompts"]["toxicity"]]
        assert sum(length <= 6 for length in lengths) > len(lengths) / 3


def test_hostile_texts_arrive_as_they_were_said(tmp_path):
    prompts = [prompt(f"p{n}", text) for n, text in enumerate(HOSTILE)]
    answers = {(f"p{n}", 0): text for n, text in enumerate(HOSTILE)}
    found = unpacked(answers_for_explorer([measured(tmp_path / "a", HOSTILE[0], answers, prompts=prompts)]))
    assert found["models"][0]["text"] == HOSTILE
    assert found["prompts"]["text"] == HOSTILE
    assert found["models"][0]["label"] == HOSTILE[0]


def test_a_page_that_would_be_too_large_carries_whole_prompts_drawn_by_seed(tmp_path):
    prompts = [prompt(f"p{n}", f"ask {n}") for n in range(60)]
    both = [
        measured(
            tmp_path / label, label, {(f"p{n}", k): "x" * 10 for n in range(60) for k in range(2)}, prompts=prompts
        )
        for label in ("A", "B")
    ]
    everything = answers_for_explorer(both)
    assert (everything.answers, len(everything.prompts)) == (240, 60)
    assert everything.summary()["notes"] == []
    # 20 letters a prompt and model: 400 have room for ten prompts.
    some = answers_for_explorer(both, most_letters=400)
    assert len(some.prompts) == 10
    assert some.answers == 40
    assert all(text for model in some.models for text in model.texts)
    assert "10 of 60 prompts" in some.summary()["notes"][0]
    assert [one.id for one in some.prompts] == sorted((one.id for one in some.prompts), key=lambda name: int(name[1:]))
    assert answers_for_explorer(both, most_letters=400).prompts == some.prompts
    assert answers_for_explorer(both, most_letters=400, seed=1).prompts != some.prompts


def drift_record(identity, author, words, logprobs):
    return {"id": identity, "author": author, "pair": 0, "words": words, "logprobs": logprobs}


def attribution_record(identity, author, reader, words, scores):
    return {"id": identity, "author": author, "reader": reader, "words": words, "scores": scores}


@pytest.fixture(scope="module")
def interpreted(sample, tmp_path_factory):
    """The interpretation knows its models in its own order, and one run that the page doesn't show."""
    folder = tmp_path_factory.mktemp("interpreted")
    stranger = measured(folder / "x", "X", {("p1", 0): "strange"}, prompts=PROMPTS[:1])
    words = [["user\n", "template"], ["neighbour", "prompt"], [" kind", "answer"], [" to", "answer"]]
    return explorer_sample.interpretation(
        folder / "interpretation",
        [sample[0], stranger, sample[2]],
        [
            drift_record("RL:RL-p1-0", 2, [[" kind", 1], [" fools", 2]], [[-1, -2, -3], [0, 0, 0], [-0.5, -2.5, -1]]),
            drift_record("FT:X-p1-0", 1, [["strange", 1]], [[-1], [-1], [-1]]),
        ],
        [
            attribution_record("RL:RL-p1-0", 2, 2, words, [[1.0, -2.0, 1.0], None, [0.0, 3.0, 0.0, -1.0]]),
            attribution_record("RL:RL-p1-0", 2, 0, words, [[9.0]]),
        ],
        interpretation_sample.sample_interpretation(),
    )


def test_words_have_the_drift_of_their_tokens_and_their_mean_share(sample, interpreted):
    data = answers_for_explorer(sample, [interpreted])
    assert set(data.words) == {(0, 2)}
    found = data.words[0, 2]
    assert found.words == [" kind", " fools"]
    # ln p by RL minus ln p by PT: 0.5 of the first token; −0.5 and 2 of the two that spell the second word.
    assert found.drift == {"RL": [0.5, 1.5]}
    # Shares 1/4, 1/2, 1/4 and 0, 3/4, 0, 1/4: of each word the mean over the tokens after it.
    assert found.context[1] == ("neighbour", "prompt")
    assert found.shares == [0.125, 0.625, 0.125, 0.25]
    assert data.notes == () or data.notes == []


def test_an_older_interpretation_says_what_it_lacks(sample, tmp_path):
    record = drift_record("RL:RL-p1-0", 2, None, [[-1], [-1], [-1]])
    old = explorer_sample.interpretation(
        tmp_path / "i", sample, [record], [], interpretation_sample.sample_interpretation()
    )
    data = answers_for_explorer(sample, [old])
    assert data.words == {}
    assert "interpret again" in data.summary()["notes"][0]


def test_the_report_has_the_explorer_and_its_policy_allows_no_other_script(sample, interpreted, tmp_path, parse):
    html = build_report([one.path for one in (*sample, interpreted)], tmp_path / "report.html").read_text("utf-8")
    page = parse(html)
    assert page.unclosed == []
    # 12 answers, and the page's words say so.
    assert "12 answers" in page.text("explorer")
    packed = next(text for attributes, text in page.scripts if attributes.get("id") == "explorer-data")
    found = json.loads(zlib.decompress(base64.b64decode(packed)))
    assert [model["label"] for model in found["models"]] == ["PT", "FT", "RL"]
    assert found["words"][0]["drift"] == {"RL": [0.5, 1.5]}
    policy = next(meta["content"] for meta in page.metas if meta.get("http-equiv") == "Content-Security-Policy")
    # Plotly is text until the page's script starts it.
    run = [text for attributes, text in page.scripts if attributes.get("type", "text/plain") == "text/plain"]
    assert policy.count("'sha256-") == len(run)
    assert "default-src 'none'" in policy
    assert "'unsafe-inline'" not in policy.split("style-src")[0]


def test_a_page_without_answers_has_no_explorer():
    html = render_page(typed.comparison(report_sample.sample_result()), title="x", examples=[], training={}, about={})
    assert 'id="explorer"' not in html
    assert "RewardLMExplorer" not in html
