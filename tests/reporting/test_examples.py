import json

from rewardlm.reporting.examples import choose_examples
from rewardlm.runs import Run
from rewardlm.types import Generation, Message, Prompt, Score


def make(path, label, table, *, history=(), toxicity=0.4):
    """``table`` maps (prompt, sample) to the judge's score, None for unscored."""
    run = Run.start(path, kind="measure", label=label, settings={})
    names = dict.fromkeys(prompt for prompt, _ in table)
    run.append(
        "prompts", [Prompt(name, (*history, Message("user", f"ask {name}")), "made up", toxicity) for name in names]
    )
    for (prompt, sample), value in table.items():
        identity = f"{label}-{prompt}-{sample}"
        run.append(
            "generations", [Generation(identity, prompt, label, sample, f"{label} {prompt} {sample}", 2, "stop", 0)]
        )
        reason = "failed" if value is None else None
        # An unscored answer has no label; other labels of the judge are not its verdict.
        run.append("scores", [Score(identity, "j", "" if value is None else "toxicity", value, reason)])
        if value is not None:
            run.append("scores", [Score(identity, "j", "insult", 0.5)])
    return run


def choose(tmp_path, before, after, **options):
    runs = [make(tmp_path / "a", "A", before), make(tmp_path / "b", "B", after)]
    return choose_examples(runs, "j", labels=["A", "B"], **options)


def kinds(chosen):
    return [one.kind for one in chosen.examples]


def test_falls_are_of_their_third_and_a_prompt_comes_once(tmp_path):
    # Nine falls of .1 to .9, four rises, six that hardly moved.
    falls = {(f"f{i}", 0): (0.95, 0.95 - i / 10) for i in range(1, 10)}
    rises = {(f"r{i}", 0): (0.1, 0.2 + i / 10) for i in range(4)}
    still = {(f"s{i}", 0): (0.5, 0.5 + i / 1000) for i in range(6)}
    pairs = {**falls, **rises, **still}
    chosen = choose(tmp_path, {k: v[0] for k, v in pairs.items()}, {k: v[1] for k, v in pairs.items()})
    assert kinds(chosen) == ["large"] * 2 + ["typical"] * 2 + ["unchanged"] * 2 + ["worse"] * 2
    names = [one.prompt for one in chosen.examples]
    assert set(names[:2]) <= {"ask f7", "ask f8", "ask f9"}
    assert set(names[2:4]) <= {"ask f4", "ask f5", "ask f6"}
    assert all(name.startswith("ask s") for name in names[4:6])
    assert all(name.startswith("ask r") for name in names[6:])
    assert (chosen.pairs, chosen.fell, chosen.of_kind["worse"], chosen.of_kind["unchanged"]) == (19, 9, 4, 6)


def test_two_answers_to_a_prompt_are_not_both_shown(tmp_path):
    before = {("p", sample): 0.9 for sample in range(6)}
    after = {("p", sample): 0.1 for sample in range(6)}
    assert len(choose(tmp_path, before, after).examples) == 1


def test_unscored_answers_are_no_change(tmp_path):
    before = {("p", 0): None, ("q", 0): 0.9, ("r", 0): 0.2}
    after = {("p", 0): 0.0, ("q", 0): None, ("r", 0): 0.2}
    assert [one.prompt for one in choose(tmp_path, before, after).examples] == ["ask r"]


def test_the_seed_decides_and_nothing_else(tmp_path):
    before = {(f"p{i}", 0): 0.5 for i in range(90)}
    after = {(f"p{i}", 0): (0.1, 0.5, 0.9)[i % 3] + i / 10_000 for i in range(90)}
    chosen = choose(tmp_path, before, after)
    runs = [Run.open(tmp_path / "a"), Run.open(tmp_path / "b")]
    assert choose_examples(runs, "j", labels=["A", "B"]) == chosen
    others = [choose_examples(runs, "j", labels=["A", "B"], seed=seed) for seed in range(1, 4)]
    assert any(other.examples != chosen.examples for other in others)
    assert all(kinds(other) == kinds(chosen) for other in others)


def test_readable_answers_come_first(tmp_path):
    """Of ten answers that didn't change three are cut off, three repeat themselves, four are hard to predict."""
    table = {(f"p{i}", 0): 0.5 for i in range(10)}
    for label in "ab":
        run = make(tmp_path / label, label.upper(), table)
        records = [json.loads(line) for line in (run.path / "generations.jsonl").read_text().splitlines()]
        for number, record in enumerate(records):
            record["finish"] = "length" if number < 3 else "stop"
            record["text"] = "no no no no no no no no no no" if 3 <= number < 6 else record["text"]
        (run.path / "generations.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        hard = [
            {"generation_id": record["id"], "perplexity": 100.0 + number if number < 8 else 5.0}
            for number, record in enumerate(records)
        ]
        run.append("quality", hard)
    runs = [Run.open(tmp_path / "a"), Run.open(tmp_path / "b")]
    for seed in range(5):
        chosen = choose_examples(runs, "j", labels=["A", "B"], seed=seed)
        assert {one.prompt for one in chosen.examples} == {"ask p8", "ask p9"}


def test_a_counter_narrative_is_shown_where_there_is_one(tmp_path):
    scores = {(f"p{i}", 0): 0.1 for i in range(5)}
    before, after = (make(tmp_path / label, label.upper(), scores, toxicity=0.9) for label in "ab")
    classes = {"counter_narrative": 0.9, "agreement": 0.1}
    after.append("quality", [{"generation_id": "B-p3-0", "classes": classes}])
    chosen = choose_examples([before, Run.open(after.path)], "j", labels=["A", "B"])
    assert [one.prompt for one in chosen.examples if one.kind == "counter"] == ["ask p3"]


def test_antecedents_are_kept(tmp_path):
    history = (Message("user", "Hello"), Message("assistant", "Hello to you"))
    runs = [make(tmp_path / name, name, {("p", 0): value}, history=history) for name, value in (("A", 0.9), ("B", 0.1))]
    (one,) = choose_examples(runs, "j", labels=["A", "B"]).examples
    assert one.history == [("user", "Hello"), ("assistant", "Hello to you")]
    assert one.toxicity == 0.4
