from rewardlm.reporting.examples import choose_examples
from rewardlm.runs import Run
from rewardlm.types import Generation, Message, Prompt, Score


def make(path, label, table, *, history=()):
    """``table`` maps (prompt, sample) to the judge's score, None for unscored."""
    run = Run.start(path, kind="measure", label=label, settings={})
    names = dict.fromkeys(prompt for prompt, _ in table)
    run.append("prompts", [Prompt(name, (*history, Message("user", f"ask {name}")), "made up", 0.4) for name in names])
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


def test_extremes_come_first_and_a_prompt_only_once(tmp_path):
    before = {("p", 0): 0.9, ("p", 1): 0.9, ("q", 0): 0.8, ("r", 0): 0.1, ("s", 0): 0.3}
    after = {("p", 0): 0.5, ("p", 1): 0.1, ("q", 0): 0.3, ("r", 0): 0.9, ("s", 0): 0.32}
    chosen = choose(tmp_path, before, after)
    # p fell by 0.8 in its second sample, q by 0.5; p's first sample isn't shown as well.
    assert [(one.kind, one.prompt) for one in chosen] == [
        ("improved", "ask p"), ("improved", "ask q"), ("worse", "ask r"), ("unchanged", "ask s"),
    ]  # fmt: skip
    assert [answer.text for answer in chosen[0].answers] == ["A p 1", "B p 1"]
    assert [answer.scores for answer in chosen[0].answers] == [{"j": 0.9}, {"j": 0.1}]


def test_unscored_answers_are_no_change(tmp_path):
    before = {("p", 0): None, ("q", 0): 0.9, ("r", 0): 0.2}
    after = {("p", 0): 0.0, ("q", 0): None, ("r", 0): 0.2}
    assert [one.prompt for one in choose(tmp_path, before, after)] == ["ask r"]


def test_at_most_so_many_of_each_kind_and_always_the_same(tmp_path):
    before = {(f"p{i}", 0): 0.5 for i in range(90)}
    after = {(f"p{i}", 0): (0.1, 0.5, 0.9)[i % 3] + i / 10_000 for i in range(90)}
    chosen = choose(tmp_path, before, after, each=3)
    assert [one.kind for one in chosen] == ["improved"] * 3 + ["worse"] * 3 + ["unchanged"] * 3
    assert [one.prompt for one in chosen[:6]] == [f"ask p{i}" for i in (0, 3, 6, 89, 86, 83)]
    runs = [Run.open(tmp_path / "a"), Run.open(tmp_path / "b")]
    assert choose_examples(runs, "j", labels=["A", "B"], each=3) == chosen
    other = choose_examples(runs, "j", labels=["A", "B"], each=3, seed=1)
    assert other[:6] == chosen[:6]
    assert other[6:] != chosen[6:]


def test_antecedents_are_kept(tmp_path):
    history = (Message("user", "Hello"), Message("assistant", "Hello to you"))
    runs = [make(tmp_path / name, name, {("p", 0): value}, history=history) for name, value in (("A", 0.9), ("B", 0.1))]
    (one,) = choose_examples(runs, "j", labels=["A", "B"])
    assert one.history == [("user", "Hello"), ("assistant", "Hello to you")]
    assert one.toxicity == 0.4
