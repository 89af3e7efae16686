"""The door: every way in which a judge can go wrong, and what is made of it; and the look-up of names."""

import math
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest

from rewardlm.errors import ScorerError
from rewardlm.scoring.load import load_scorer
from rewardlm.scoring.scorer import FailureLimit, as_score, is_empty, is_settled, score_texts
from rewardlm.types import Score, Verdict


class Fake:
    """A judge that does what the test says and remembers what it was asked."""

    name = "fake"
    labels = ("toxicity",)

    def __init__(self, answer):
        self.answer = answer
        self.calls = []

    def score(self, texts):
        self.calls.append(list(texts))
        return self.answer(texts)


def lengths(texts):
    return [Verdict({"toxicity": len(text) / 100}) for text in texts]


def test_blank_texts_are_never_asked_and_equal_texts_once():
    fake = Fake(lengths)
    limit = FailureLimit(max_share=0)
    verdicts = score_texts(fake, ["abc", "", "de", " \n\t\u200b", "abc"], limit=limit)
    assert fake.calls == [["abc", "de"]]
    assert [v.values.get("toxicity") for v in verdicts] == [0.03, None, 0.02, None, 0.03]
    assert [v.reason for v in verdicts] == [None, "empty response", None, "empty response", None]
    assert not any(v.failed for v in verdicts)
    assert (limit.seen, limit.failed) == (3, 0)


def test_nothing_to_ask():
    fake = Fake(lengths)
    assert score_texts(fake, []) == []
    assert score_texts(fake, [""])[0].reason == "empty response"
    assert fake.calls == []


def test_only_the_text_that_makes_the_judge_raise_is_unscored():
    def answer(texts):
        if "poison" in texts:
            raise RuntimeError("no\nway")
        return lengths(texts)

    verdicts = score_texts(Fake(answer), ["one", "poison", "three"])
    assert [v.reason for v in verdicts] == [None, "RuntimeError: no way", None]
    assert [v.failed for v in verdicts] == [False, True, False]
    assert verdicts[1].values == {}


@pytest.mark.parametrize("change", [lambda x: x[:-1], lambda x: x + x[:1], lambda x: []])
def test_a_wrong_number_of_scores_is_never_matched_up(change):
    verdicts = score_texts(Fake(lambda texts: change(lengths(texts))), ["a", "b", "c"])
    assert [v.values for v in verdicts] == [{}, {}, {}]
    assert all(v.failed and "scores came back for 1 texts" in v.reason for v in verdicts)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (math.nan, "nan"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (-0.001, "-0.001"),
        (1.001, "1.001"),
        (None, "NoneType"),
        ("0.5", "'0.5'"),
        ([0.1, 0.2], "list"),
    ],
)
def test_a_value_that_is_no_probability_is_unscored(value, said):
    def answer(texts):
        return [Verdict({"toxicity": value if text == "bad" else 0.5}) for text in texts]

    good, bad = score_texts(Fake(answer), ["good", "bad"])
    assert good == Verdict({"toxicity": 0.5})
    assert bad.failed
    assert bad.values == {}
    assert said in bad.reason


def test_a_secondary_label_is_checked_too_and_the_main_one_must_be_there():
    bad = score_texts(Fake(lambda t: [Verdict({"toxicity": 0.1, "threat": math.nan})]), ["x"])[0]
    assert bad.failed
    assert "threat" in bad.reason
    assert "no value for 'toxicity'" in score_texts(Fake(lambda t: [Verdict({"threat": 0.1})]), ["x"])[0].reason
    assert "float" in score_texts(Fake(lambda t: [0.1]), ["x"])[0].reason


def test_unbounded_takes_any_finite_number():
    verdicts = score_texts(Fake(lambda t: [Verdict({"toxicity": np.float32(-7.5)})]), ["x"], bounded=False)
    assert verdicts == [Verdict({"toxicity": -7.5})]
    assert type(verdicts[0].values["toxicity"]) is float
    assert score_texts(Fake(lambda t: [Verdict({"toxicity": math.inf})]), ["x"], bounded=False)[0].failed


def test_a_judge_that_declines_is_no_failure():
    limit = FailureLimit(max_share=0)
    verdicts = score_texts(Fake(lambda t: [Verdict(reason="language not supported")]), ["x"], limit=limit)
    assert verdicts == [Verdict(reason="language not supported")]
    assert (limit.seen, limit.failed) == (1, 0)


def test_an_interrupt_and_a_judge_that_gives_up_pass_through():
    def interrupt(texts):
        raise KeyboardInterrupt

    def gone(texts):
        raise ScorerError("the endpoint is gone")

    with pytest.raises(KeyboardInterrupt):
        score_texts(Fake(interrupt), ["x"])
    with pytest.raises(ScorerError, match="gone"):
        score_texts(Fake(gone), ["x", "y"])


def test_the_failure_limit_counts_over_the_whole_run():
    good, bad = Verdict({"toxicity": 0.1}), Verdict(reason="ValueError: first", failed=True)
    limit = FailureLimit(max_share=0.01)
    limit.add("judge", [bad] + [good] * 31)  # 1 of 32 is above the share, but 32 texts are too few to tell
    limit.add("judge", [bad])
    with pytest.raises(ScorerError, match=r"3 of 34 .*8\.8%.*1\.0%.*judge: ValueError: first"):
        limit.add("judge", [bad])

    limit = FailureLimit(max_share=0.01)
    limit.add("judge", [good] * 297)
    limit.add("judge", [bad] * 3)  # exactly 1 % is allowed
    limit.close()
    with pytest.raises(ScorerError, match="4 of 301"):
        limit.add("judge", [bad])


@pytest.mark.parametrize("share", [0, 0.01, 0.1, 0.5, 1])
def test_the_failure_limit_against_its_sentence(share):
    """Every number of failures among every number of texts, one text at a time, failures first."""
    good, bad = Verdict({"toxicity": 0.1}), Verdict(reason="no", failed=True)

    def too_many(failed, seen, forgiven):
        over_the_share = failed / seen > share
        return over_the_share and (failed > forgiven or share == 0)

    for n_failed in range(9):
        for n_good in range(0, 450, 7):
            limit = FailureLimit(share)
            stopped_at = None
            for seen in range(1, n_failed + n_good + 1):
                try:
                    limit.add("judge", [bad if seen <= n_failed else good])
                except ScorerError:
                    stopped_at = seen
                    break
            expected = next((k for k in range(1, n_failed + 1) if too_many(k, k, 2)), None)
            assert stopped_at == expected, (n_failed, n_good)
            if stopped_at is None and n_failed + n_good:
                lonely = n_failed + n_good == 1
                refused = too_many(n_failed, n_failed + n_good, 0 if lonely else 1)
                try:
                    limit.close()
                except ScorerError:
                    assert refused, (n_failed, n_good)
                else:
                    assert not refused, (n_failed, n_good)


def test_a_judge_that_always_fails_is_stopped_within_its_first_batch():
    broken = Fake(lambda texts: [Verdict({"toxicity": 2.0})] * len(texts))
    with pytest.raises(ScorerError, match="8 of 8"):
        score_texts(broken, [f"text {i}" for i in range(8)], limit=FailureLimit())
    for alone in (0.0, 0.01, 0.5):
        limit = FailureLimit(alone)
        try:
            score_texts(broken, ["text"], limit=limit)
        except ScorerError:
            continue
        with pytest.raises(ScorerError, match="1 of 1"):
            limit.close()


def test_the_failure_limit_at_the_end_of_a_short_run():
    limit = FailureLimit()
    limit.close()
    score_texts(Fake(lambda t: [Verdict({"toxicity": 2.0})] * len(t)), ["a", "b"], limit=limit)
    with pytest.raises(ScorerError, match="2 of 2"):
        limit.close()
    with pytest.raises(ScorerError, match="0 to 1"):
        FailureLimit(max_share=5)


def test_a_users_function(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_judge_ok.py").write_text(
        "import numpy\n"
        "def shout(texts): return numpy.array([t.isupper() for t in texts], dtype='float32')\n"
        "def text(texts): return 'abc'\n"
        "def none(texts): return None\n"
        "class Judge:\n"
        "    @staticmethod\n"
        "    def half(texts): return (0.5 for t in texts)\n"
        "number = 3\n"
    )
    path = list(sys.path)
    scorer = load_scorer("my_judge_ok:shout")
    assert sys.path == path
    assert (scorer.name, scorer.labels) == ("my_judge_ok:shout", ("toxicity",))
    assert score_texts(scorer, ["HEY", "hey"]) == [Verdict({"toxicity": 1.0}), Verdict({"toxicity": 0.0})]
    assert score_texts(load_scorer("my_judge_ok:Judge.half"), ["x"]) == [Verdict({"toxicity": 0.5})]
    assert "returned a str" in score_texts(load_scorer("my_judge_ok:text"), ["a", "b", "c"])[0].reason
    assert "TypeError" in score_texts(load_scorer("my_judge_ok:none"), ["a"])[0].reason
    with pytest.raises(ScorerError, match="has no 'shut'"):
        load_scorer("my_judge_ok:shut")
    with pytest.raises(ScorerError, match="is a int: expected a function"):
        load_scorer("my_judge_ok:number")


def test_a_users_function_that_cant_be_imported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_judge_broken.py").write_text("def f(:\n")
    path = list(sys.path)
    for spec, said in [("my_judge_absent:f", "ModuleNotFoundError"), ("my_judge_broken:f", "SyntaxError")]:
        with pytest.raises(ScorerError, match=said) as caught:
            load_scorer(spec)
        assert "\n" not in str(caught.value)
    assert sys.path == path


def test_a_users_function_that_exits_fails_like_any_other(tmp_path, monkeypatch):
    """Its exit(0) would otherwise end the command as if everything had been scored."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_judge_exits.py").write_text(
        "import sys\ndef f(texts):\n    if 'b' in texts: sys.exit(0)\n    return [0.5] * len(texts)\n"
    )
    (tmp_path / "my_judge_exits_at_once.py").write_text("import sys\nsys.exit(0)\n")
    found = score_texts(load_scorer("my_judge_exits:f"), ["a", "b"])
    assert [verdict.failed for verdict in found] == [False, True]
    assert "exit(0)" in found[1].reason
    with pytest.raises(ScorerError, match="SystemExit"):
        load_scorer("my_judge_exits_at_once:f")


def test_a_users_function_may_raise_anything(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_judge_ends.py").write_text(
        "class End(BaseException): pass\n"
        "def f(texts):\n"
        "    if 'b' in texts: raise End('of it')\n"
        "    if 'c' in texts: raise GeneratorExit\n"
        "    if 'stop' in texts: raise KeyboardInterrupt\n"
        "    return [0.5] * len(texts)\n"
    )
    judge = load_scorer("my_judge_ends:f")
    found = score_texts(judge, ["a", "b", "c"])
    assert [verdict.failed for verdict in found] == [False, True, True]
    assert "f raised End: of it" in found[1].reason
    assert "GeneratorExit" in found[2].reason
    with pytest.raises(KeyboardInterrupt):
        score_texts(judge, ["stop"])


@pytest.mark.parametrize("spec", ["lexcial", "", "a b", "../no/such/folder", "x" * 300, "a\0b", "a:b:c", ":f"])
def test_an_unknown_name_lists_what_is_possible(spec):
    with pytest.raises(ScorerError, match="lexical, lexical2, a hub id") as caught:
        load_scorer(spec)
    assert "\n" not in str(caught.value)


def test_a_verdict_may_lack_another_label_than_the_main_one():
    partial = Verdict({"toxicity": 0.3}, reason="no score of threat: {}", failed=True)
    fake = Fake(lambda texts: [partial])
    fake.labels = ("toxicity", "threat")
    assert score_texts(fake, ["x"]) == [partial]
    assert as_score("a", "fake", "toxicity", partial) == Score("a", "fake", "toxicity", 0.3)
    assert as_score("a", "fake", "threat", partial) == Score("a", "fake", "threat", None, partial.reason, failed=True)
    nothing = score_texts(Fake(lambda texts: [Verdict({"threat": 0.3}, reason="no toxicity", failed=True)]), ["x"])
    assert nothing == [Verdict(reason="no toxicity", failed=True)]
    silent = as_score("a", "fake", "threat", Verdict({"toxicity": 0.3}))
    assert (silent.value, silent.failed) == (None, True)


def test_what_is_not_asked_for_again():
    declined, failed = Verdict(reason="language not supported"), Verdict(reason="HTTP 500", failed=True)
    for verdict, settled in [(Verdict({"t": 0.1}), True), (declined, True), (failed, False)]:
        assert is_settled(asdict(as_score("a", "fake", "t", verdict))) is settled
    # Runs of older versions don't say.
    assert is_settled({"value": None, "reason": "empty response"})
    assert not is_settled({"value": None, "reason": "HTTP 500"})


def test_the_list_of_an_ensembles_members(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_judge_list.py").write_text("def a(t): return [0.2] * len(t)\ndef b(t): return [0.4] * len(t)\n")
    a, b = "my_judge_list:a", "my_judge_list:b"
    nested = load_scorer(f"mean({a}, max({a},{b}) )")
    assert nested.name == f"mean({a},max({a},{b}))"
    assert nested.score(["x"])[0].values["toxicity"] == pytest.approx((0.2 + 0.4) / 2)
    with pytest.raises(ScorerError, match="named twice"):
        load_scorer(f"mean({a},{a})")
    for broken in ("", "a,,b", f"mean({a},{b}", f"{a},", f"{a}),{b}("):
        with pytest.raises(ScorerError, match=r"can't read the list .*lexical2"):
            load_scorer(f"mean({broken})")


def test_importing_the_door_is_cheap():
    code = (
        "import sys, rewardlm.scoring.scorer, rewardlm.scoring.classifier, rewardlm.scoring.lstm, "
        "rewardlm.scoring.lexical, rewardlm.scoring.ensemble; "
        "print([m for m in ('torch', 'transformers', 'sklearn', 'numpy', 'h5py') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("text", ["", " \t\r\n", "\u200b", "\u200b\ufeff \u2060", "\u00a0\u3000", "\x00\x1b"])
def test_what_nobody_sees_is_empty(text):
    assert is_empty(text)


@pytest.mark.parametrize("text", [".", "…", "a", "\u200bno\u200b", "🙂", "👩\u200d👦", "0", "你"])
def test_what_somebody_sees_is_not_empty(text):
    assert not is_empty(text)
