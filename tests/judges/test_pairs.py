"""The judge of pairs: where its examples come from, what training leaves behind, and whether its figures are right."""

import json
import math
import re
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_score, recall_score
from transformers import BertConfig, BertModel, BertTokenizer

from rewardlm.data.dialogues import load_dialogues, normalised
from rewardlm.errors import DataError, ModelError, RunError, ScorerError
from rewardlm.judges.pair_data import (
    _GROUPS,
    _MENTIONS,
    answered,
    controls,
    draw,
    exchanges,
    made_up,
    own_texts,
    permuted,
    split_exchanges,
    target_of,
)
from rewardlm.judges.pair_evaluation import PairEvaluateSettings, evaluate_on, evaluate_pairs, held_out_controls
from rewardlm.judges.pairs import PairJudgeSettings, _command, _epoch, fit_temperature, train_pair_judge
from rewardlm.judges.texts import load_labelled
from rewardlm.scoring.pairs import PAIR_LABELS, load_pair_judge
from rewardlm.types import Dialogue, Message


def dialogue(name, *texts, target="A"):
    turns = tuple(Message("assistant" if at % 2 else "user", text) for at, text in enumerate(texts))
    return Dialogue(name, turns, "test", target)


# ---- examples -----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from([f"Text {i}" for i in range(12)]), min_size=2, max_size=6).filter(
            lambda texts: len(texts) % 2 == 0
        ),
        min_size=2,
        max_size=12,
    ),
    st.sampled_from([0.1, 0.3, 0.5]),
)
def test_no_text_is_in_both_parts(turns, validation):
    # Answers repeat across components, and an answer may be another dialogue's hate: the former must not leak.
    dialogues = [
        dialogue(str(number), *(f"{text}{'!' if at % 2 else ''}" for at, text in enumerate(texts)))
        for number, texts in enumerate(turns)
    ]
    train, held_out = split_exchanges(dialogues, validation=validation)
    for part in ("hate", "counter"):
        ours = {normalised(getattr(exchange, part)) for exchange in train}
        assert not ours & {normalised(getattr(exchange, part)) for exchange in held_out}
    siblings = {normalised(text) for exchange in train for text in exchange.siblings}
    assert not siblings & {normalised(exchange.hate) for exchange in held_out}


def test_our_own_lines_are_split_and_plenty():
    train, held_out = own_texts("train"), own_texts("held_out")
    for name in ("refusals", "agreements", "retorts", "objections", "chatter", "claims", "harmless"):
        ours, theirs = getattr(train, name), getattr(held_out, name)
        assert not set(ours) & set(theirs)
        assert len(set(ours + theirs)) == len(ours + theirs)
        assert len(theirs) >= len(ours) / 4 >= 6
    assert len(train.refusals + held_out.refusals) >= 60
    assert len(train.chatter + held_out.chatter) >= 40


@pytest.fixture(scope="module")
def starter():
    return exchanges(load_dialogues("starter").dialogues)


def test_every_exchange_gives_one_example_of_each_class(starter):
    examples = draw(starter, own_texts("train"), "a")
    assert Counter(example.label for example in examples) == dict.fromkeys(PAIR_LABELS, len(starter))
    for exchange, of_it in zip(starter, zip(*[iter(examples)] * 4, strict=True), strict=True):
        assert [example.label for example in of_it] == list(PAIR_LABELS)
        assert {example.dialogue_id for example in of_it} == {exchange.dialogue_id}
        for example in of_it:
            assert exchange.hate.startswith(example.prompt)
    assert all(example.answer.strip() for example in examples)
    assert draw(starter, own_texts("train"), "a") == examples
    assert draw(starter, own_texts("train"), "b") != examples


def test_answers_are_what_their_class_says(starter):
    texts = own_texts("train")
    counters, hate = {e.counter: e for e in starter}, {e.hate: e for e in starter}
    of_dialogue = {e.dialogue_id: e for e in starter}
    seen = Counter()
    for number in range(5):
        for example in draw(starter, texts, str(number)):
            seen[example.kind] += 1
            mine = of_dialogue[example.dialogue_id]
            if example.kind == "other's answer":
                theirs = next(e for text, e in counters.items() if text.startswith(example.answer))
                assert not theirs.targets & mine.targets
            elif example.kind == "hateful turn":
                theirs = next(e for text, e in hate.items() if text.startswith(example.answer))
                assert theirs.targets & mine.targets
            assert "{group}" not in example.prompt + example.answer
    assert len(seen) == 12
    assert min(seen.values()) >= 20


def test_half_of_the_answers_end_where_measured_ones_do(starter):
    answers = [
        e.answer for n in range(5) for e in draw(starter, own_texts("train"), str(n)) if e.kind == "counter-narrative"
    ]
    cut = [answer for answer in answers if not answer.rstrip('"').endswith((".", "!", "?"))]
    assert 0.2 < len(cut) / len(answers) < 0.5
    assert min(len(answer.split()) for answer in cut) >= 10


def test_a_text_has_the_target_that_it_names():
    named = {
        "Black folks are lazy": "black people",
        "a WOMAN's place": "women",
        "lgbtq+ rights, gays": "lgbt+",
        "Autistic kids": "people with mental illness",
        "All Jews and Muslims": None,  # two
        "They are all the same": None,
        "islamabad is a transition, my jewellery": None,
    }
    assert {text: target_of(text) for text in named} == named
    # What a claim is said to be about is what answers can name.
    assert not set(_MENTIONS) - set(_GROUPS)


HATE = {"women": ["Women can't drive.", "Girls are weak."], "jews": ["Jews own it all.", "No Jew works."]}


def test_published_hate_is_answered_by_its_group(starter):
    texts = own_texts("train")
    found = answered(HATE, starter, texts, 200, "a")
    assert answered(HATE, starter, texts, 200, "a") == found
    assert len(found) == 200
    longer = 0
    for exchange in found:
        (target,) = exchange.targets
        assert exchange.hate in HATE[target]
        assert any(word.lower() in exchange.counter.lower() for word in _GROUPS[target])
        of_target = [e.counter for e in starter if target in e.targets]
        longer += any(exchange.counter.endswith(counter) for counter in of_target)
    assert 60 < longer < 140
    assert 60 < sum(exchange.targets == {"women"} for exchange in found) < 140
    assert answered({}, starter, texts, 200, "a") == []


def test_published_hate_agrees_with_hate_of_the_same_target(starter):
    about = [exchange for exchange in starter if exchange.targets & HATE.keys()]
    counts = Counter()
    for number in range(30):
        for example in draw(about, own_texts("train"), str(number), HATE):
            theirs = next((t for t, texts in HATE.items() if any(text in example.answer for text in texts)), None)
            if theirs is not None:
                assert example.label == "agreement"
                assert {theirs} == next(e.targets for e in about if e.dialogue_id == example.dialogue_id) & HATE.keys()
            counts[example.kind, theirs is not None] += 1
    for kind in ("hateful turn", "agreed hate"):
        total = counts[kind, True] + counts[kind, False]
        assert 0.35 < counts[kind, True] / total < 0.6


def test_made_up_exchanges_name_their_group():
    ours = made_up(own_texts("train"), 300, "a")
    assert made_up(own_texts("train"), 300, "a") == ours
    assert len({exchange.targets for exchange in ours}) >= 15
    assert len({(exchange.hate, exchange.counter) for exchange in ours}) > 290
    for example in draw(ours, own_texts("train"), "a"):
        assert "{group}" not in example.prompt + example.answer


def test_controls_are_answers_under_prompts_that_they_dont_oppose(starter):
    """Each kind by what it says it is; texts are looked up in the dialogues and files that they come from."""
    texts, toxic = own_texts("train"), ["What a stupid film.", "You drive like an idiot."]
    hate, of_dialogue = {}, {}
    for exchange in starter:
        hate.setdefault(exchange.hate, exchange)
        of_dialogue.setdefault(exchange.dialogue_id, []).append(exchange)
    found = controls(starter, texts, "a", 4, toxic)
    assert controls(starter, texts, "a", 4, toxic) == found
    assert len(found) == 4 * len(starter)
    seen = Counter(example.kind for example in found)
    assert set(seen) == {"other target", "other claim", "toxic", "harmless", "meaningless"}
    assert min(seen.values()) >= 0.05 * len(found)
    for example in found:
        assert example.label == "off_topic"
        mine = of_dialogue[example.dialogue_id][0]
        if example.kind == "other target":
            assert not hate[example.prompt].targets & mine.targets
        elif example.kind == "other claim":
            assert hate[example.prompt].targets & mine.targets
            assert example.prompt not in {exchange.hate for exchange in of_dialogue[example.dialogue_id]}
        elif example.kind == "toxic":
            assert example.prompt in toxic
        elif example.kind == "harmless":
            assert any(
                re.fullmatch(re.escape(line).replace(re.escape("{group}"), ".+"), example.prompt, re.IGNORECASE)
                for line in texts.harmless
            )
        if example.kind.startswith("other"):
            # An objection alone may fit any hate.
            assert not any(example.answer == line for line in texts.objections)


def test_permuted_answers_are_under_every_other_prompt_once(starter):
    found = permuted(starter, 0)
    assert permuted(starter, 0) == found
    assert permuted(starter, 1) != found
    assert len(found) == len(starter)
    asked = {exchange.hate: exchange for exchange in starter}
    assert sorted(example.answer for example in found) == sorted(exchange.counter for exchange in starter)
    assert all(asked[example.prompt].dialogue_id != example.dialogue_id for example in found)
    # Of any target: some share it, most don't.
    targets = {exchange.dialogue_id: exchange.targets for exchange in starter}
    same = sum(bool(targets[example.dialogue_id] & asked[example.prompt].targets) for example in found)
    assert 0 < same < len(found) / 2
    assert permuted(starter[:1], 0) == []


def test_one_target_alone_still_gives_answers_that_miss_the_topic():
    one = exchanges([dialogue(str(n), f"Hate number {n}.", f"Answer number {n}.") for n in range(5)])
    examples = draw(one, own_texts("train"), "a")
    assert {e.kind for e in examples if e.label == "off_topic"} <= {"chatter", "scrambled"}


# ---- figures ------------------------------------------------------------------------------------------------------


class Made:
    """A judge that answers by a seeded draw, so that it is sometimes right."""

    def judge(self, pairs):
        rows = np.random.default_rng(3).dirichlet([1, 1, 1, 1], len(pairs))
        return [dict(zip(PAIR_LABELS, row.tolist(), strict=True)) for row in rows]


def test_figures_equal_the_peers(starter):
    examples = draw(starter[:60], own_texts("held_out"), "x")
    found = evaluate_pairs(Made(), examples)
    verdicts = Made().judge([(e.prompt, e.answer) for e in examples])
    truth = [e.label for e in examples]
    called = [max(v, key=v.get) for v in verdicts]
    scores = np.array([v["counter_narrative"] for v in verdicts])
    labels = list(PAIR_LABELS)
    assert found["n"] == 240
    assert found["accuracy"] == pytest.approx(accuracy_score(truth, called))
    assert found["macro_f1"] == pytest.approx(f1_score(truth, called, average="macro"))
    assert found["confusion"] == confusion_matrix(truth, called, labels=labels).tolist()
    only = {"labels": ["counter_narrative"], "average": None}
    assert found["precision"] == pytest.approx(precision_score(truth, called, **only)[0])
    assert found["recall"] == pytest.approx(recall_score(truth, called, **only)[0])

    def area(one, other):
        return mannwhitneyu(scores[one], scores[other]).statistic / (one.sum() * other.sum())

    kinds, truth = np.array([e.kind for e in examples]), np.array(truth)
    ours = truth == "counter_narrative"
    assert found["auc"] == pytest.approx(area(ours, ~ours))
    for label in labels[1:]:
        assert found["auc_against"][label] == pytest.approx(area(ours, truth == label))
    assert found["auc_hate"] == pytest.approx(area(kinds == "counter-narrative", kinds == "hateful turn"))
    assert found["auc_ci95"][0] < found["auc"] < found["auc_ci95"][1]
    assert found["accuracy_ci95"][0] < found["accuracy"] < found["accuracy_ci95"][1]
    assert sum(sum(row.values()) for row in found["kinds"].values()) == 240
    assert found["controls"] == {}
    tests = held_out_controls(starter[:60], 0)
    said = [max(v, key=v.get) for v in Made().judge([(e.prompt, e.answer) for e in tests])]
    for kind, counted in evaluate_pairs(Made(), examples, tests)["controls"].items():
        mine = [label for label, test in zip(said, tests, strict=True) if test.kind == kind]
        assert counted == {"n": len(mine), "called": mine.count("counter_narrative")}
    json.dumps(found, allow_nan=False)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.3, 1.0, 2.5]))
def test_the_temperature_is_the_best_of_a_grid(seed, scale):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (200, 4))
    labels = np.array([rng.choice(4, p=np.exp(row / scale) / np.exp(row / scale).sum()) for row in logits])

    def loss(temperature):
        z = logits / temperature
        return np.mean([math.log(sum(math.exp(v) for v in row)) - row[y] for row, y in zip(z, labels, strict=True)])

    found = fit_temperature(logits, labels)
    assert loss(found) <= min(loss(math.exp(t)) for t in np.linspace(-2.9, 2.9, 60)) + 1e-6


# ---- training -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A BERT of two small layers that knows the starter dialogues' letters and commonest words."""
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    texts = [turn.text.lower() for d in load_dialogues("starter").dialogues for turn in d.turns]
    words = [word for word, _ in Counter(" ".join(texts).split()).most_common(400) if word.isalpha()]
    letters = sorted({letter for text in texts for letter in text if not letter.isspace()})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{x}" for x in letters), *words]
    vocabulary = list(dict.fromkeys(vocabulary))
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=128, initializer_range=0.1,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return str(folder)


def settings_of(encoder, **changes):
    usual = {
        "encoder": encoder,
        "epochs": 2,
        "device": "cpu",
        "precision": "float32",
        "validation": 0.2,
        "made_up": 100,
        # Controls can only be told by comparing both texts: so small a network learns nothing from them in two epochs.
        "controls": 0,
    }
    return PairJudgeSettings(**{**usual, **changes})


@pytest.mark.parametrize("n", [0, 1, 2, 3, 5, 8])
def test_controls_never_outweigh_the_classes(starter, n):
    """Else the judge would learn to say "off topic" whenever it is in doubt."""
    chosen = PairJudgeSettings(controls=n, made_up=20, answered=0)
    found = Counter(example.label for example in _epoch(starter[:60], {}, ["What a stupid film."], chosen, 0))
    assert found["off_topic"] <= 0.5 * sum(found.values())
    assert len({found[label] for label in PAIR_LABELS if label != "off_topic"}) == 1
    assert sum(found.values()) == 80 * (4 * (1 + n // 2) + n)


@pytest.fixture(scope="module")
def trained(encoder, tmp_path_factory):
    return train_pair_judge(settings_of(encoder), tmp_path_factory.mktemp("runs") / "judge")


@pytest.mark.slow
def test_training_leaves_a_judge_with_its_card(trained, encoder, starter):
    assert trained.finished
    record = json.loads((trained.path / "judge.json").read_text())
    assert record["kind"] == "pairs"
    assert record["problem_type"] == "single_label_classification"
    judge = load_pair_judge(str(trained.path))
    _, held_out = split_exchanges(load_dialogues("starter").dialogues, validation=0.2)
    figures = evaluate_pairs(judge, draw(held_out, own_texts("held_out"), "held out"), held_out_controls(held_out, 0))
    assert record["metrics"] == {"starter, held out": figures}
    assert figures["n"] == 4 * len(held_out)
    card = (trained.path / "README.md").read_text()
    assert record["command"] in card
    assert f"{figures['accuracy']:.3f}" in card
    assert {source["licence"] for source in record["data"]} == {"Apache-2.0, our own"}
    # Something was learnt, and calibrated: no other temperature would do better now.
    assert figures["accuracy"] > 0.35
    losses = [line["loss"] for line in trained.read("metrics") if "loss" in line]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


@pytest.mark.slow
def test_the_temperature_is_in_the_head(trained):
    judge = load_pair_judge(str(trained.path))
    _, held_out = split_exchanges(load_dialogues("starter").dialogues, validation=0.2)
    examples = draw(held_out, own_texts("held_out"), "held out")
    verdicts = judge.judge([(e.prompt, e.answer) for e in examples])
    logits = np.log([[v[label] for label in PAIR_LABELS] for v in verdicts])
    labels = np.array([PAIR_LABELS.index(e.label) for e in examples])
    assert fit_temperature(logits, labels) == pytest.approx(1, abs=0.05)


@pytest.mark.slow
def test_the_same_again_does_nothing_and_other_settings_are_refused(trained, encoder):
    before = (trained.path / "adapter_model.safetensors").stat().st_mtime_ns
    train_pair_judge(settings_of(encoder), trained.path)
    assert (trained.path / "adapter_model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(RunError, match="seed"):
        train_pair_judge(settings_of(encoder, seed=1), trained.path)


@pytest.mark.slow
def test_a_killed_training_goes_on_from_its_last_epoch(trained, encoder, tmp_path):
    class Killed(Exception):
        pass

    steps = [line["step"] for line in trained.read("metrics")]

    def kill(done, total, detail):
        if done > total * 0.7:
            raise Killed

    with pytest.raises(Killed):
        train_pair_judge(settings_of(encoder), tmp_path / "judge", report=kill)
    seen = []
    run = train_pair_judge(
        settings_of(encoder), tmp_path / "judge", report=lambda done, total, detail: seen.append(done)
    )
    assert seen[0] > max(steps) * 0.4
    assert [line["step"] for line in run.read("metrics")] == steps
    whole = json.loads((trained.path / "judge.json").read_text())
    again = json.loads((run.path / "judge.json").read_text())
    assert again["metrics"]["starter, held out"]["confusion"] == whole["metrics"]["starter, held out"]["confusion"]


@pytest.mark.slow
def test_a_judge_may_start_from_another(trained, encoder, tmp_path):
    """Without a step to speak of, it says what the other says; on another encoder, or of another shape, it can't."""
    barely = {"epochs": 1, "learning_rate": 1e-12, "made_up": 0, "controls": 0, "warmup_ratio": 0.0}
    run = train_pair_judge(settings_of(encoder, start=str(trained.path), **barely), tmp_path / "judge")
    pairs = [("They are all thieves.", "Most of them never stole a thing."), ("Hello.", "I can't help with that.")]
    ours, theirs = (load_pair_judge(str(path)).judge(pairs) for path in (run.path, trained.path))
    temperature = json.loads((run.path / "judge.json").read_text())["temperature"]
    for one, two in zip(ours, theirs, strict=True):
        logits = {label: math.log(value) / temperature for label, value in two.items()}
        total = sum(map(math.exp, logits.values()))
        assert one == pytest.approx({label: math.exp(value) / total for label, value in logits.items()}, abs=5e-3)
    record = json.loads((run.path / "judge.json").read_text())
    assert record["started_from"] == load_pair_judge(str(trained.path)).revision
    lora = {**PairJudgeSettings().lora.model_dump(), "r": 4}
    with pytest.raises(ModelError, match="start"):
        train_pair_judge(settings_of(encoder, start=str(trained.path), lora=lora, **barely), tmp_path / "other")
    with pytest.raises(ScorerError, match="no pair judge"):
        train_pair_judge(settings_of(encoder, start=str(tmp_path), **barely), tmp_path / "third")


def test_a_source_without_toxic_texts_is_named(encoder, tmp_path):
    (tmp_path / "kind.csv").write_text("text,toxicity\n" + "".join(f"A kind text {n}.,0\n" for n in range(40)))
    with pytest.raises(DataError, match="no toxic text that names no group"):
        train_pair_judge(settings_of(encoder, toxic=[str(tmp_path / "kind.csv")]), tmp_path / "judge")


def test_dialogues_that_leave_nothing_to_hold_out_are_refused(encoder, tmp_path):
    file = tmp_path / "two.jsonl"
    turns = [{"role": "user", "content": "They are all bad."}, {"role": "assistant", "content": "No, they aren't."}]
    file.write_text(json.dumps({"id": "1", "messages": turns}) + "\n")
    with pytest.raises(DataError, match="held out"):
        train_pair_judge(settings_of(encoder, dialogues=str(file)), tmp_path / "judge")


def test_the_command_in_the_card_gives_the_same_settings():
    chosen = PairJudgeSettings(dialogues="a.csv", epochs=3, lora={**PairJudgeSettings().lora.model_dump(), "r": 4})
    words = _command(chosen).split()
    assert words[:3] == ["rewardlm", "judge", "train-pairs"]
    tree = dict(word.split("=") for word in words[3:] if "=" in word)
    assert tree == {"dialogues": "a.csv", "epochs": "3", "lora.r": "4"}
    assert _command(PairJudgeSettings()) == "rewardlm judge train-pairs --out DIR"


@pytest.mark.slow
def test_a_judge_that_reads_published_hate_says_so(trained, encoder, tmp_path):
    file = tmp_path / "posts.csv"
    hateful = [f"Women of village {number} are lazy" for number in range(80)]
    file.write_text("text,hate\n" + "".join(f"{text},1\n" for text in hateful) + "Women are kind,0\nHe is bad,1\n")
    run = train_pair_judge(settings_of(encoder, hate=str(file), epochs=1, answered=40), tmp_path / "judge")
    record = json.loads((run.path / "judge.json").read_text())
    published = record["data"][-1]
    (of_file,) = load_labelled(str(file))
    trained_on = [text for text in of_file.training if text.text in hateful]
    assert published["source"] == "posts"
    assert published["texts"] == len(trained_on) < len(hateful)  # some are held out
    assert published["sha256"] == of_file.sha256
    assert "posts" in (run.path / "README.md").read_text()
    assert str(file) in record["command"]
    # 40 exchanges more than without, four pairs each. The judge without learnt for two epochs.
    assert run.meta["steps"] > trained.meta["steps"] / 2

    file.write_text("text,hate\nWomen are kind,0\nHe is bad,1\n")
    with pytest.raises(DataError, match="names a group"):
        train_pair_judge(settings_of(encoder, hate=str(file)), tmp_path / "none")


@pytest.mark.slow
def test_the_shipped_judge_needs_the_prompt():
    """On dialogues that it never read: permuted answers, and those to harmless prompts, are seldom called so."""
    chosen = PairEvaluateSettings(judge="starter_pairs", dialogues="starter-plain", limit=150, device="cpu")
    found = evaluate_on(chosen)
    permuted_ones = found["controls"]["permuted"]
    assert permuted_ones["called"] <= 0.15 * permuted_ones["n"]
    others = [counted for kind, counted in found["controls"].items() if kind in ("other target", "harmless")]
    assert sum(counted["called"] for counted in others) <= 0.15 * sum(counted["n"] for counted in others)
    # And what it is for it does as before: 0.948 by the judge before it, on all of these dialogues.
    assert found["auc_hate"] > 0.92
    assert found["recall"] > 0.78
