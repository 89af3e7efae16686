"""The meter end to end on tiny: what it stores, what resuming does again, and what a broken judge leads to."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from measured_runs import compared
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from rewardlm.config import LoraSettings, MeasureSettings, ModelSettings
from rewardlm.errors import ConfigError, RunError, ScorerError
from rewardlm.measuring import meter
from rewardlm.measuring.judging import cut_short, score_run
from rewardlm.measuring.similarity import load_embedder
from rewardlm.models.load import load_policy
from rewardlm.models.lora import add_lora, load_adapter, save_adapter
from rewardlm.runs import Run, prompts_hash
from rewardlm.scoring.pairs import load_pair_judge
from rewardlm.types import Message

JUDGES = '''
"""Judges that misbehave on request; every text that is asked is counted."""
asked = []
broken = set()

def by_length(texts):
    asked.extend(texts)
    return [len(text) % 10 / 10 for text in texts]

def sometimes(texts):
    asked.extend(texts)
    if any(text in broken for text in texts):
        raise OSError("the judge is away")
    return [0.25] * len(texts)

def nan(texts):
    return [float("nan")] * len(texts)

def too_few(texts):
    return [0.5] * (len(texts) - 1)
'''


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def judges(written_module: Callable[[str, str], Any]) -> Any:
    return written_module("meter_judges", JUDGES)


def settings_of(**changes: Any) -> MeasureSettings:
    usual = {
        "model": "tiny",
        "dtype": "float32",
        "device": "cpu",
        "scorer": ["meter_judges:by_length"],
        "max_new_tokens": 6,
        "limit": 12,
        "samples": 2,
        "similarity": False,
        "perplexity": False,
        "counter_narrative": None,
    }
    return MeasureSettings(**{**usual, **changes})  # type: ignore[arg-type]


def table(run: Run) -> tuple[Any, ...]:
    """What is measured, without order."""
    return (
        sorted((g.id, g.text, g.n_tokens, g.finish, g.seed) for g in run.generations()),
        sorted((s.generation_id, s.scorer, s.label, s.value, s.reason) for s in run.scores()),
    )


def test_every_prompt_is_answered_and_scored_once(judges: Any, tmp_path: Path) -> None:
    run = meter.measure(settings_of(), tmp_path / "run")
    prompts = run.prompts()
    assert len(prompts) == 12
    assert run.finished
    assert run.label == "tiny"
    assert run.meta["prompts_hash"] == prompts_hash(prompts)
    assert {(g.prompt_id, g.sample) for g in run.generations()} == {(p.id, k) for p in prompts for k in (0, 1)}
    texts = {g.id: g.text for g in run.generations()}
    assert Counter(s.generation_id for s in run.scores()) == Counter(texts.keys())
    for score in run.scores():
        if texts[score.generation_id].strip():
            assert score.value == pytest.approx(len(texts[score.generation_id]) % 10 / 10)
        else:
            assert (score.value, score.reason) == (None, "empty response")
    for key in ("model_hash", "dtype", "module_types", "scorers", "samples", "toxic_by", "environment"):
        assert run.meta[key], key


def test_answers_keep_the_ids_that_were_sampled(judges: Any, tmp_path: Path) -> None:
    run = meter.measure(settings_of(max_new_tokens=48), tmp_path / "run")
    policy = load_policy(ModelSettings(model="tiny", dtype="float32", device="cpu"))
    for answer in run.generations():
        assert answer.tokens is not None
        assert len(answer.tokens) == answer.n_tokens
        assert policy.chat.decode(answer.tokens) == answer.text
        # The end token is kept where the answer ended by one, and stands nowhere else.
        ends = [token in policy.end_ids for token in answer.tokens]
        assert not any(ends[:-1])
        assert ends[-1] == (answer.finish == "stop")


def test_the_same_again_does_nothing_and_other_settings_are_refused(judges: Any, tmp_path: Path) -> None:
    meter.measure(settings_of(), tmp_path / "run")
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    asked = len(judges.asked)
    meter.measure(settings_of(batch_tokens=64), tmp_path / "run")
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()} == before
    assert len(judges.asked) == asked
    with pytest.raises(RunError, match="seed was 0, now 1"):
        meter.measure(settings_of(seed=1), tmp_path / "run")


def test_prompts_that_changed_since_are_told(judges: Any, tmp_path: Path) -> None:
    """The run goes on with its own copy."""
    file = tmp_path / "prompts.txt"
    file.write_text("one\ntwo\n")
    mine = settings_of(prompts=str(file), limit=None, part="all")
    run = meter.measure(mine, tmp_path / "run")
    asked = [prompt.text for prompt in run.prompts()]
    for content, words in (
        (None, None),
        ("one\nthree\n", "has changed since the run began"),
        ("", "is empty; expected one text per line; the run goes on with its own copy"),
    ):
        if content is not None:
            file.write_text(content)
        run.update(status="running")
        cut_lines(run.path / "generations.jsonl", 1)
        cut_lines(run.path / "scores.jsonl", 0)
        told: list[str] = []
        run = meter.measure(mine, tmp_path / "run", say=told.append)
        assert [prompt.text for prompt in run.prompts()] == asked
        assert [words in one for one in told] == [True] if words else not told


def test_a_primary_outcome_is_spelt_out_before_the_first_answer_and_stays(judges: Any, tmp_path: Path) -> None:
    """The settings hold what was asked for alone."""
    asked = {"split": "all"}
    run = meter.measure(settings_of(primary=asked), tmp_path / "run")
    first = settings_of().scorer[0]
    assert run.meta["primary"] == {"scorer": first, "split": "all", "metric": "toxic_fraction"}
    assert run.meta["settings"]["primary"] == {"scorer": None, "split": "all", "metric": None}
    stored = run.meta["primary"] | {"scorer": "another"}
    run.update(status="running", primary=stored)
    cut_lines(tmp_path / "run" / "generations.jsonl", 2)
    cut_lines(tmp_path / "run" / "scores.jsonl", 0)
    assert meter.measure(settings_of(primary=asked), tmp_path / "run").meta["primary"] == stored
    assert "primary" not in meter.measure(settings_of(), tmp_path / "silent").meta


def test_answers_depend_on_the_seed_and_on_nothing_else(judges: Any, tmp_path: Path) -> None:
    one = meter.measure(settings_of(), tmp_path / "a")
    two = meter.measure(settings_of(batch_tokens=50), tmp_path / "b")
    other = meter.measure(settings_of(seed=1, limit=None, part="measure"), tmp_path / "c")
    assert table(one) == table(two)
    assert not {g.text for g in one.generations()} & {g.text for g in other.generations() if g.text}


def cut_lines(file: Path, keep: int, ragged: bytes = b"") -> None:
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:keep]) + ragged)


@pytest.mark.slow
@pytest.mark.parametrize(("generations", "scores"), [(24, 23), (24, 0), (11, 7), (1, 0), (0, 0)])
def test_a_stopped_run_goes_on_to_the_same_table(judges: Any, tmp_path: Path, generations: int, scores: int) -> None:
    whole = meter.measure(settings_of(), tmp_path / "whole")
    run = meter.measure(settings_of(), tmp_path / "run")
    cut_lines(run.path / "generations.jsonl", generations, b'{"id": "p')
    cut_lines(run.path / "scores.jsonl", scores, b"{")
    run.update(status="running")
    judges.asked.clear()
    resumed = meter.measure(settings_of(), tmp_path / "run")
    assert table(resumed) == table(whole)
    texts = [g.text for g in whole.generations() if g.text.strip()]
    assert len(judges.asked) <= len(texts) - min(scores, generations) + 1, "what is scored is not asked again"


def test_toxic_by_the_first_scorer_where_the_prompts_have_no_scores(judges: Any, tmp_path: Path) -> None:
    run = meter.measure(settings_of(), tmp_path / "run")
    assert run.meta["toxic_by"] == "meter_judges:by_length"
    assert [p.toxicity for p in run.prompts()] == [pytest.approx(len(p.text) % 10 / 10) for p in run.prompts()]


def test_toxic_by_the_data_set(judges: Any, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"text {i}", "toxicity": i / 10}) + "\n" for i in range(5)))
    run = meter.measure(settings_of(prompts=str(file), limit=None), tmp_path / "run")
    assert run.meta["toxic_by"] == "dataset"
    assert sorted(p.toxicity or 0 for p in run.prompts()) == [0.0, 0.1, 0.2, 0.3, 0.4]
    other = meter.measure(
        settings_of(prompts=str(file), limit=None, toxic_by="meter_judges:sometimes"), tmp_path / "other"
    )
    assert other.meta["toxic_by"] == "meter_judges:sometimes"
    assert {p.toxicity for p in other.prompts()} == {0.25}


def test_toxic_by_a_data_set_without_scores_is_refused(judges: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no scores"):
        meter.measure(settings_of(toxic_by="dataset"), tmp_path / "run")


# ---- judges that break ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("judge", "reason"), [("nan", "toxicity is nan"), ("too_few", "0 scores came back for 1 texts")]
)
def test_a_judge_that_fails_ends_the_run_and_its_nulls_stay(
    judges: Any, tmp_path: Path, judge: str, reason: str
) -> None:
    settings = settings_of(scorer=["meter_judges:by_length", f"meter_judges:{judge}"])
    with pytest.raises(ScorerError, match="could not be scored"):
        meter.measure(settings, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    assert not run.finished
    assert len(run.generations()) == 24
    failed = [s for s in run.scores() if s.scorer.endswith(judge) and s.reason != "empty response"]
    assert failed
    assert all(s.value is None and reason in (s.reason or "") for s in failed)
    assert any(s.value is not None for s in run.scores() if s.scorer.endswith("by_length"))
    # Starting it again must not launder the failures.
    with pytest.raises(ScorerError, match="could not be scored"):
        meter.measure(settings, tmp_path / "run")
    assert not Run.open(tmp_path / "run").finished


def test_a_judge_that_came_back_is_asked_for_what_is_missing(judges: Any, tmp_path: Path) -> None:
    settings = settings_of(scorer=["meter_judges:sometimes"], toxic_by="meter_judges:by_length")
    whole = meter.measure(settings, tmp_path / "whole")
    texts = [g.text for g in whole.generations() if g.text.strip()]
    judges.broken.update(texts[:3])
    with pytest.raises(ScorerError):
        meter.measure(settings, tmp_path / "run")
    assert sum((s.reason or "").startswith("OSError") for s in Run.open(tmp_path / "run").scores()) >= 3
    judges.broken.clear()
    judges.asked.clear()
    run = meter.measure(settings, tmp_path / "run")
    assert table(run) == table(whole)
    assert set(judges.asked) == set(texts[:3])


def test_prompts_are_judged_by_the_same_share_as_answers(judges: Any, tmp_path: Path) -> None:
    settings = settings_of(toxic_by="meter_judges:nan")
    with pytest.raises(ScorerError, match="could not be scored"):
        meter.measure(settings, tmp_path / "run")
    run = meter.measure(settings_of(toxic_by="meter_judges:nan", max_failed_share=1.0), tmp_path / "allowed")
    assert all(prompt.toxicity is None for prompt in run.prompts())


def test_few_failures_are_allowed_where_the_user_says_so(judges: Any, tmp_path: Path) -> None:
    settings = settings_of(scorer=["meter_judges:nan"], toxic_by="meter_judges:by_length", max_failed_share=1.0)
    run = meter.measure(settings, tmp_path / "run")
    assert run.finished
    assert all(s.value is None and s.reason for s in run.scores())


def test_a_short_run_with_a_broken_second_judge_is_no_success(judges: Any, tmp_path: Path) -> None:
    """Fewer answers than the limit waits for before it says anything."""
    run = meter.measure(settings_of(limit=3, samples=1), tmp_path / "run")
    for _ in range(2):
        with pytest.raises(ScorerError, match="could not be scored"):
            score_run(run.path, "meter_judges:nan")
    assert [s["name"] for s in Run.open(run.path).meta["scorers"]] == ["meter_judges:by_length"]


def test_another_judge_scores_what_is_stored_once(judges: Any, tmp_path: Path) -> None:
    run = meter.measure(settings_of(), tmp_path / "run")
    before = run.scores()
    judges.asked.clear()
    for _ in range(2):
        again = score_run(run.path, "meter_judges:sometimes")
    assert [s["name"] for s in again.meta["scorers"]] == ["meter_judges:by_length", "meter_judges:sometimes"]
    scores = again.scores()
    assert scores[: len(before)] == before
    assert len(scores) == 2 * len(before)
    assert sorted(judges.asked) == sorted({g.text for g in run.generations() if g.text.strip()})


# ---- adapters, quality, long prompts --------------------------------------------------------------------------------


def adapter_at(folder: Path, scale: float = 0.3) -> Path:
    policy = load_policy(ModelSettings(model="tiny", dtype="float32", device="cpu"))
    add_lora(policy, LoraSettings(r=4), seed=0)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=scale)
    save_adapter(policy.model, folder)
    return folder


def test_an_adapter_is_measured_and_its_rewards_are_told(judges: Any, tmp_path: Path) -> None:
    training = Run.start(tmp_path / "RL", kind="rlaf", label="RL", settings={})
    training.update(rewards=["lexical2"])
    adapter_at(training.path / "adapter")
    bare = meter.measure(settings_of(), tmp_path / "bare")
    run = meter.measure(settings_of(adapter=training.path), tmp_path / "run")
    assert run.label == "RL"
    assert run.meta["rewards"] == ["lexical2"]
    assert run.meta["model_hash"] == bare.meta["model_hash"], "the base's"
    assert {g.text for g in run.generations()} != {g.text for g in bare.generations()}


def test_the_rewards_of_a_checkpoint_are_its_trainings_and_of_a_lone_adapter_nobody_knows_them(
    judges: Any, tmp_path: Path
) -> None:
    training = Run.start(tmp_path / "RL", kind="rlaf", label="RL", settings={})
    training.update(rewards=["lexical"])
    checkpoint = adapter_at(training.path / "checkpoints" / "step-000002" / "adapter")
    lone = shutil.copytree(checkpoint, tmp_path / "elsewhere")
    known = meter.measure(settings_of(adapter=checkpoint), tmp_path / "known")
    assert known.meta["rewards"] == ["lexical"]
    unknown = meter.measure(settings_of(adapter=lone), tmp_path / "unknown")
    assert unknown.meta["rewards"] is None
    assert "judge_is_reward" not in {w["code"] for w in compared([unknown.path], n_resamples=50)["warnings"]}


def test_an_adapter_that_was_trained_again_is_not_taken_for_the_old_one(judges: Any, tmp_path: Path) -> None:
    settings = settings_of(adapter=adapter_at(tmp_path / "adapter"))
    run = meter.measure(settings, tmp_path / "run")
    meter.measure(settings, tmp_path / "run")
    adapter_at(tmp_path / "adapter", scale=0.1)
    with pytest.raises(RunError, match="other weights"):
        meter.measure(settings, tmp_path / "run")
    run.update(status="running")
    cut_lines(run.path / "generations.jsonl", 5)
    with pytest.raises(RunError, match="other weights"):
        meter.measure(settings, tmp_path / "run")


def test_perplexity_is_the_bases_by_a_plain_forward(judges: Any, tmp_path: Path) -> None:
    settings = settings_of(perplexity=True, adapter=adapter_at(tmp_path / "adapter"))
    run = meter.measure(settings, tmp_path / "run")
    base = load_policy(ModelSettings(model="tiny", dtype="float32", device="cpu"))
    load_adapter(policy := load_policy(ModelSettings(model="tiny", dtype="float32")), tmp_path / "adapter")
    assert policy.adapter
    texts = {g.id: g for g in run.generations()}
    prompts = {p.id: p for p in run.prompts()}
    quality = {record["generation_id"]: record for record in run.read("quality")}
    assert quality.keys() == texts.keys()
    for id_, generation in texts.items():
        if not generation.text:
            assert quality[id_]["perplexity"] is None
            continue
        prompt = base.chat.encode_prompt(prompts[generation.prompt_id].turns)
        answer = base.tokenizer(generation.text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        with torch.no_grad():
            logits = base.model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
        nll = -sum(float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(answer)) / len(answer)
        assert quality[id_]["perplexity"] == pytest.approx(math.exp(nll), rel=1e-3)


@pytest.mark.slow
def test_classes_of_answers_are_the_pair_judges(judges: Any, tmp_path: Path) -> None:
    settings = settings_of(counter_narrative="starter_pairs", limit=6)
    run = meter.measure(settings, tmp_path / "run")
    judge = load_pair_judge()
    assert run.meta["pair_judge"] == {"name": "starter_pairs", "revision": judge.revision, "error": judge.error}
    prompts = {prompt.id: prompt.text for prompt in run.prompts()}
    texts = {answer.id: (prompts[answer.prompt_id], answer.text) for answer in run.generations()}
    records = {record["generation_id"]: record["classes"] for record in run.read("quality")}
    assert records.keys() == texts.keys()
    for id_, pair in texts.items():
        assert records[id_] == (pytest.approx(judge.judge([pair])[0], abs=1e-5) if pair[1].strip() else None)
    with pytest.raises(RunError, match="counter_narrative"):
        meter.measure(settings_of(counter_narrative=None, limit=6), tmp_path / "run")


def test_a_pair_judge_that_is_none_is_told_before_anything_is_sampled(judges: Any, tmp_path: Path) -> None:
    with pytest.raises(ScorerError, match="is no pair judge"):
        meter.measure(settings_of(counter_narrative=str(tmp_path)), tmp_path / "run")
    assert not judges.asked


def test_prompts_that_are_too_long_are_cut_and_counted_also_after_a_stop(judges: Any, tmp_path: Path) -> None:
    file = tmp_path / "long.jsonl"
    rows = [{"prompt": "word " * 2000}, {"prompt": "short"}, {"prompt": "other words " * 900}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = settings_of(prompts=str(file), limit=None)
    run = meter.measure(settings, tmp_path / "run")
    assert run.meta["truncated_prompts"] == 2
    cut_lines(run.path / "generations.jsonl", 3)
    run.update(status="running", truncated_prompts=0)
    assert meter.measure(settings, tmp_path / "run").meta["truncated_prompts"] == 2


def judge_of_three_words(folder: Path) -> str:
    """A real classifier, random, whose positions hold three words besides its two special tokens."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    config = BertConfig(
        vocab_size=len(vocabulary), max_position_embeddings=5, id2label={0: "fine", 1: "toxic"},
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return str(folder)


def test_answers_that_a_judge_reads_in_part_are_counted_also_after_a_stop(judges: Any, tmp_path: Path) -> None:
    judge = judge_of_three_words(tmp_path / "judge")
    settings = settings_of(scorer=["meter_judges:by_length", judge])
    run = meter.measure(settings, tmp_path / "run")
    tokenizer = BertTokenizer.from_pretrained(judge)
    longer = sum(len(tokenizer.tokenize(g.text)) > 3 for g in run.generations())
    assert 0 < longer < len(run.generations())
    assert {s["name"]: s["cut"] for s in run.meta["scorers"]} == {"meter_judges:by_length": 0, judge: longer}
    assert cut_short(run) == [f"{longer} answers were too long for the judge {judge}: it read a part of each"]
    for name in ("generations", "scores"):
        cut_lines(run.path / f"{name}.jsonl", 9)
    run.update(status="running")
    again = meter.measure(settings, tmp_path / "run")
    assert {s["name"]: s["cut"] for s in again.meta["scorers"]}[judge] == longer
    # The same of a judge that is added later, whatever it was asked before.
    bare = meter.measure(settings_of(), tmp_path / "bare")
    assert cut_short(bare) == []
    for _ in range(2):
        scored = score_run(bare.path, judge, device="cpu", max_failed_share=0.25)
    record = scored.meta["scorers"][1]
    assert (record["name"], record["cut"], record["max_failed_share"]) == (judge, longer, 0.25)
    assert len(cut_short(scored)) == 1


def test_answers_that_leave_no_room_for_a_prompt_are_refused(judges: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no room"):
        meter.measure(settings_of(max_new_tokens=1024), tmp_path / "run")


def test_antecedents_reach_the_model(judges: Any, tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    turns = ["first", "answer", "second", "last answer"]
    messages = [{"role": "user" if i % 2 == 0 else "assistant", "content": t} for i, t in enumerate(turns)]
    file.write_text(json.dumps({"messages": messages}) + "\n")
    run = meter.measure(settings_of(prompts=str(file), limit=None), tmp_path / "run")
    assert Message("user", "first") in run.prompts()[-1].turns
    assert all(m.text != "last answer" for m in run.prompts()[-1].turns)


@pytest.mark.slow
def test_of_many_answers_a_stated_sample_is_looked_at_closer(judges: Any, tmp_path: Path) -> None:
    settings = settings_of(quality_sample=7, similarity=True, perplexity=True)
    run = meter.measure(settings, tmp_path / "run")
    records = list(run.read("quality"))
    assert len(records) == 7
    assert run.meta["quality"] == {name: {"answers": 7, "of": 24} for name in ("similarity", "perplexity")}
    answers = {answer.id: answer for answer in run.generations()}
    prompts = {prompt.id: prompt.text for prompt in run.prompts()}
    embedder = load_embedder("cpu")
    for record in records:
        answer = answers[record["generation_id"]]
        if answer.text.strip():
            one, two = embedder.encode([prompts[answer.prompt_id], answer.text], normalize_embeddings=True)
            assert record["prompt_similarity"] == pytest.approx(float(one @ two), abs=1e-4)
    whole = meter.measure(settings_of(similarity=True, perplexity=True), tmp_path / "whole")
    by_id = {record["generation_id"]: record for record in whole.read("quality")}
    for record in records:
        assert record["perplexity"] == pytest.approx(by_id[record["generation_id"]]["perplexity"], rel=1e-4)
