"""The RL loop on the tiny model: gradients against a plain forward pass, limits, and whether it learns."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from statistics import fmean, stdev

import pytest
import torch
from safetensors.torch import load_file

from rewardlm.config import KlSettings, ModelSettings, RlafSettings
from rewardlm.data.prompts import load_prompts
from rewardlm.errors import ConfigError, RunError, ScorerError, TrainingError
from rewardlm.models import logprobs
from rewardlm.models.generate import Sampled
from rewardlm.models.load import load_policy
from rewardlm.models.logprobs import forward_rows, score_rows
from rewardlm.models.lora import adapter_parameters, load_adapter
from rewardlm.runs import Run
from rewardlm.scoring.lineage import lineage_of
from rewardlm.training import guards, judged_run, learner, rlaf
from rewardlm.training.judged_run import witnesses
from rewardlm.training.prompt_order import PromptOrder
from rewardlm.training.rewards import BatchRewards
from rewardlm.training.rlaf import train
from rewardlm.training.rollouts import Draft, Rollouts

TINY = {"model": "tiny", "device": "cpu", "dtype": "float32"}
INSULT, KIND = "You are a stupid idiot and I hate you.", "I see it differently: most of them pay taxes."


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def judges(tmp_path, monkeypatch):
    """Function rewards in a module that is found in the current directory, as a user's would be."""
    (tmp_path / "rlaf_judges.py").write_text(
        "def few_ank(texts):\n"
        "    return [1 - sum(c in 'ank ' for c in t.lower()) / max(1, len(t)) for t in texts]\n"
        "def flipped(texts):\n"
        "    return [1 - value for value in few_ank(texts)]\n"
        "def fussy(texts):\n"
        "    if any(sum(map(ord, t)) % 3 == 0 for t in texts if not t.endswith(('.', 'you'))):\n"
        "        raise ValueError('not this one')\n"
        "    return few_ank(texts)\n"
        "def broken(texts):\n"
        "    return [0.9 if 'u' in t and t.endswith('.') and ('You' in t or 'Shut' in t or 'moron' in t) else\n"
        "            0.1 if t.endswith('.') else float('nan') for t in texts]\n"
    )
    monkeypatch.chdir(tmp_path)


# What the default pays for besides, left out: none of these tests is about it, and its judges take seconds to load.
PLAIN = {"transform": "probability", "terms": {"refusal": 0, "similarity": 0, "counter_narrative": 0}}


def settings(**changes) -> RlafSettings:
    plain = {"batch_size": 8, "max_new_tokens": 6, "steps": 2, "rewards": PLAIN, "witness": []}
    return RlafSettings(**{**TINY, **plain, **changes})


def metrics(run: Run) -> list[dict]:
    return list(run.read("metrics"))


# The loop -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "rloo"])
def test_every_algorithm_runs_end_to_end(algorithm, tmp_path):
    run = train(settings(algorithm=algorithm, learning_rate=1e-2, rewards={}), tmp_path / "run")
    lines = metrics(run)
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        assert line["first_ratio"] == pytest.approx(1, abs=1e-4)
        assert line["answers"] == 8
        assert line["updates"] == (1 if algorithm == "rloo" else 4)
        # A logit, and what the answers earn besides: the subject, not refusing, and opposing hate.
        assert -10 < line["reward_mean"] < 20
        assert line["terms"].keys() == {"refusal", "similarity", "counter_narrative"}
        assert {"seconds", "entropy", "response_tokens", "tokens_per_second", "peak_rss_mb"} <= line.keys()
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-3)
    assert lines[1]["kl"] != pytest.approx(0, abs=1e-3)
    weights = load_file(str(run.path / "adapter" / "adapter_model.safetensors"))
    assert any(bool(tensor.any()) for name, tensor in weights.items() if "lora_B" in name)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())
    assert (run.path / "checkpoints" / "step-000002" / "value_head.safetensors").exists() == (algorithm == "ppo")


@pytest.mark.slow
def test_one_answer_of_one_token_trains_with_finite_numbers(tmp_path):
    run = train(settings(batch_size=1, minibatches=1, max_new_tokens=1, limit=1, steps=2), tmp_path / "run")
    assert [line["response_tokens"] for line in metrics(run)] == [1, 1]


@pytest.mark.slow
def test_ppo_raises_an_easy_reward(tmp_path, judges):
    """The share of four characters in answers of two tokens; random answers have a fifth of them."""
    run = train(
        settings(
            reward=["rlaf_judges:few_ank"],
            steps=30,
            batch_size=64,
            limit=1,
            max_new_tokens=2,
            ppo_epochs=1,
            minibatches=1,
            learning_rate=2e-2,
            kl=KlSettings(coef=0.0),
            checkpoint_every=100,
        ),
        tmp_path / "run",
    )
    rewards = [line["reward_mean"] for line in metrics(run)]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.08


@pytest.mark.slow
def test_an_insult_becomes_less_likely_than_a_kind_answer(tmp_path, monkeypatch):
    """The real loop and the real judge; only the texts are chosen instead of drawn."""

    def chosen(policy, settings, prompts, *_):
        samples = settings.samples_per_prompt
        # Each comes first for some prompt: samples are kept of the first.
        texts = [text for i in range(len(prompts)) for text in [INSULT, KIND][:: 1 if i % 2 else -1] * (samples // 2)]
        asked = [row // samples for row in range(len(texts))]
        ids = [prompts[i].ids for i in asked]
        tokens = [answer_ids(policy, text) for text in texts]
        with torch.no_grad():
            stats = forward_rows(policy.causal_lm, ids, tokens, range(len(tokens)))
        sizes = [len(answer) for answer in tokens]
        sampled = [
            Sampled(row, tokens[row], lp, lp, h, hidden, "stop")
            for row, (lp, h, hidden) in enumerate(
                zip(stats.logprobs.split(sizes), stats.entropy.split(sizes), stats.hidden.split(sizes), strict=True)
            )
        ]
        return Draft(asked, ids, sampled, texts)

    monkeypatch.setattr(rlaf, "sample", chosen)
    run = train(settings(algorithm="grpo", steps=4, learning_rate=3e-3), tmp_path / "run")
    rewards = {line["response"]: line["reward"] for line in run.read("samples")}
    assert rewards[INSULT] < 0.2 < 0.8 < rewards[KIND]

    policy = load_policy(ModelSettings(**TINY))
    prompt = policy.chat.encode_prompt(load_prompts("starter").prompts[0].turns)
    answers = [answer_ids(policy, INSULT), answer_ids(policy, KIND)]
    before = score_rows(policy.causal_lm, [prompt] * 2, answers, 10**6)[0].sum(1)
    load_adapter(policy, run.path / "adapter")
    after = score_rows(policy.causal_lm, [prompt] * 2, answers, 10**6)[0].sum(1)
    insult, kind = (after - before).tolist()
    assert kind > insult + 1
    assert insult < 0 < kind


def answer_ids(policy, text: str) -> list[int]:
    return [*policy.tokenizer(text)["input_ids"], policy.tokenizer.eos_token_id]


# Judges that can't be trusted ---------------------------------------------------------------------------------------


def test_a_flipped_reward_is_refused_before_step_one(tmp_path, judges):
    with pytest.raises(ScorerError, match="higher must be more toxic"):
        train(settings(reward=["rlaf_judges:flipped"]), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert not (tmp_path / "run" / "adapter").exists()


@pytest.mark.slow
def test_answers_that_a_judge_fails_on_are_dropped_and_counted(tmp_path, judges):
    run = train(
        settings(
            reward=["rlaf_judges:fussy"],
            algorithm="grpo",
            batch_size=16,
            steps=4,
            samples_every=1,
            rewards={"max_failed_share": 1.0},
        ),
        tmp_path / "run",
    )
    for line in metrics(run):
        assert line["answers"] + sum(line["dropped"].values()) == 16
        assert "ValueError: not this one" in line["dropped"]
    assert any(line["reward"] is None for line in run.read("samples"))


@pytest.mark.slow
def test_too_many_failures_end_the_run_and_leave_no_adapter(tmp_path, judges):
    with pytest.raises(ScorerError, match=r"could not be scored"):
        train(settings(reward=["rlaf_judges:broken"], batch_size=32), tmp_path / "run")
    assert not (tmp_path / "run" / "adapter").exists()
    meta = json.loads((tmp_path / "run" / "run.json").read_text())
    assert meta["status"] == "stopped"
    assert "could not be scored" in meta["stopped"]


# Limits -------------------------------------------------------------------------------------------------------------


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(str(folder / "adapter" / "adapter_model.safetensors"))


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_a_runaway_kl_stops_and_keeps_the_adapter_from_before_it(tmp_path):
    # Step 1 measures KL 0 and updates far too strongly; step 2 sees it. The good adapter is the one before step 1's
    # update, whose B is zero, and not the newest checkpoint's.
    with pytest.raises(TrainingError, match=r"step 2: KL to the reference is .* over the limit kl.max=0.5"):
        train(settings(learning_rate=0.05, steps=4, algorithm="rloo", kl=KlSettings(max=0.5)), tmp_path / "run")
    kept = adapter(tmp_path / "run")
    assert all(not bool(tensor.any()) for name, tensor in kept.items() if "lora_B" in name)
    assert not same(kept, adapter(tmp_path / "run" / "checkpoints" / "step-000001"))
    assert [line["step"] for line in Run.open(tmp_path / "run").read("metrics")] == [1]


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before the update", "after it"])
def test_a_broken_weight_stops_and_keeps_the_last_good_adapter(tmp_path, monkeypatch, when):
    update = rlaf.update

    def poisoned(found, chosen, batch, step, *more):
        losses = {}
        if when == "after it":
            losses = update(found, chosen, batch, step, *more)
        if step == 1:
            with torch.no_grad():
                adapter_parameters(found.policy.model)[0][0, 0] = math.nan
        if when == "before the update":
            losses = update(found, chosen, batch, step, *more)
        return losses

    monkeypatch.setattr(rlaf, "update", poisoned)
    # Found in step 2's gradient, or in the logits that step 3's answers are drawn from.
    expected = (
        "step 2: the gradient's norm is nan" if when == "before the update" else "step 3: the logits of tiny hold NaN"
    )
    with pytest.raises(TrainingError, match=expected) as caught:
        train(settings(steps=4), tmp_path / "run")
    assert "the adapter of step 1 is kept" in str(caught.value)
    assert same(adapter(tmp_path / "run"), adapter(tmp_path / "run" / "checkpoints" / "step-000001"))


@pytest.mark.slow
def test_warnings_name_what_went_wrong(tmp_path):
    run = train(settings(steps=1), tmp_path / "run")
    rollouts = _rollouts(["Привет, как дела", "Спасибо", "Hello there"], rewards=[0.5, 0.5, 0.5], kl=-2.0, entropy=0.01)
    found = guards.doubts_about(rollouts, -2.0, ["What do you think?"] * 3, [])
    said = {
        "negative_kl": "negative KL: -2.00",
        "constant_reward": "constant reward: all 3 answers got 0.500",
        "entropy_collapse": "entropy collapse: 0.010",
        "language_switch": "language switch: 67%",
    }
    assert found.keys() == said.keys()
    assert all(found[name].startswith(text) for name, text in said.items())
    calm = _rollouts(["Hello", "Good day", "¿Qué tal?"], rewards=[0.5, 0.6, 0.7], kl=0.2, entropy=3.0)
    assert guards.doubts_about(calm, 0.2, ["Hello", "How are you?", "¿Qué?"], []) == {}
    assert "warnings" in metrics(run)[0]


@pytest.fixture
def bored(tmp_path, monkeypatch):
    """A judge with the right sign that finds the answers of the first two batches different, and all others alike."""
    (tmp_path / "rlaf_bored.py").write_text(
        "asked = []\n"
        "def judge(texts):\n"
        "    if texts[-1].endswith('taxes.'):\n"
        "        return [0.9, 0.9, 0.9, 0.1, 0.1, 0.1]\n"
        "    asked.append(texts)\n"
        "    return [0.5 if len(asked) > 2 else i / 10 for i in range(len(texts))]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "rlaf_bored", raising=False)
    return "rlaf_bored:judge"


@pytest.mark.slow
@pytest.mark.parametrize("named", [[], ["entropy_collapse", "negative_kl"]])
def test_a_warning_that_is_not_named_stops_nothing(tmp_path, bored, named):
    chosen = settings(reward=[bored], steps=4, limit=8, stop_on=named)
    with pytest.warns(UserWarning, match=r"step 3: constant reward"):
        run = train(chosen, tmp_path / "run")
    # That tiny's answers are cut off is said of every step.
    warned = [[text for text in line["warnings"] if not text.startswith("truncated")] for line in metrics(run)]
    assert [bool(texts) for texts in warned] == [False, False, True, True]


@pytest.mark.slow
def test_a_warning_that_is_named_stops_the_run_and_keeps_the_last_good_adapter(tmp_path, bored):
    chosen = settings(reward=[bored], steps=4, limit=8, stop_on=["constant_reward"])
    with pytest.raises(TrainingError, match=r"step 3: constant reward: all 8 answers got 0.500, and stop_on") as caught:
        train(chosen, tmp_path / "run")
    assert "the adapter of step 1 is kept" in str(caught.value)
    assert same(adapter(tmp_path / "run"), adapter(tmp_path / "run" / "checkpoints" / "step-000001"))
    assert [line["step"] for line in Run.open(tmp_path / "run").read("metrics")] == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("checkpoints", [2, 1])
def test_a_limit_hit_in_the_first_step_after_a_resume_leaves_the_last_good_adapter(tmp_path, monkeypatch, checkpoints):
    """What is good is the adapter that has answered within the limits: not the checkpoint's, whose turn it is now."""

    class Interrupted(Exception):
        pass

    def interrupt(step, steps, line):
        if step == checkpoints:
            raise Interrupted

    chosen = settings(steps=4, learning_rate=1e-2)
    with pytest.raises(Interrupted):
        train(chosen, tmp_path / "run", report=interrupt)
    folders = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert len(folders) == checkpoints
    assert not (tmp_path / "run" / "adapter").exists()

    def hit(step, *_):
        raise TrainingError(f"step {step + 1}: over the limit")

    with monkeypatch.context() as patch:
        patch.setattr(rlaf, "check_limits", hit)
        with pytest.raises(TrainingError, match=rf"step {checkpoints + 1}: over .*of step {checkpoints - 1} is kept"):
            train(chosen, tmp_path / "run")
    kept = adapter(tmp_path / "run")
    if checkpoints == 2:
        assert same(kept, adapter(folders[0]))
    else:
        assert all(not bool(tensor.any()) for name, tensor in kept.items() if "lora_B" in name)
    # The limit lifted (it was a passing fault, say), the run ends as one that nobody disturbed.
    whole = train(chosen, tmp_path / "whole")
    assert same(adapter(train(chosen, tmp_path / "run").path), adapter(whole.path))


@pytest.mark.slow
def test_what_is_cut_is_said_and_recorded(tmp_path, monkeypatch):
    """Two of three prompts too long for max_prompt_tokens, and a judge that reads five letters."""
    file = tmp_path / "p.jsonl"
    rows = [{"prompt": "word " * 50}, {"prompt": "hi"}, {"prompt": "longer " * 40}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    load = judged_run.load_reward

    def short_sighted(name, **more):
        scorer = load(name, **more)
        scorer.cuts = lambda texts: [len(text) > 5 for text in texts]
        return scorer

    monkeypatch.setattr(judged_run, "load_reward", short_sighted)
    drawn, said = [], []
    draw = rlaf.sample
    monkeypatch.setattr(rlaf, "sample", lambda *a, **k: drawn.append(draw(*a, **k)) or drawn[-1])
    run = train(
        settings(reward=["lexical"], prompts=str(file), max_prompt_tokens=16), tmp_path / "run", say=said.append
    )
    cut = sum(len(text) > 5 for draft in drawn for text in draft.texts)
    assert cut > 0
    assert run.meta["cut"] == {"lexical": cut}
    assert run.meta["prompts"]["truncated"] == 2
    assert said == [
        "2 of 3 prompts are too long: they lose the beginning of their history",
        f"{cut} answers were too long for the judge lexical: it read a part of each",
    ]
    nothing: list[str] = []
    train(settings(), tmp_path / "short", say=nothing.append)
    assert [text for text in nothing if "prompts" in text] == []


def judged_as(toxicity: list[float | None], witness: list[float | None] | None = None) -> BatchRewards:
    n = len(toxicity)
    return BatchRewards(
        rewards=[None if value is None else 1 - value for value in toxicity],
        toxicity=toxicity,
        by_judge={"judge": toxicity},
        by_witness={} if witness is None else {"witness": witness},
        terms={},
        disagreement=[None] * n,
        empty=[False] * n,
        reasons=[None] * n,
    )


def _rollouts(
    texts: list[str], *, rewards: list[float], kl: float, entropy: float, witness: list[float | None] | None = None
) -> Rollouts:
    n = len(texts)
    return Rollouts(
        prompts=[(1,)] * n,
        responses=[[1]] * n,
        response_mask=torch.ones(n, 1, dtype=torch.bool),
        logprobs=torch.full((n, 1), kl - 1),
        sampling_logprobs=torch.full((n, 1), kl - 1),
        ref_logprobs=torch.full((n, 1), -1.0),
        entropy=torch.full((n, 1), entropy),
        kl_full=None,
        values=None,
        ref_hidden=None,
        rewards=torch.tensor(rewards),
        group=torch.arange(n),
        texts=texts,
        judged=judged_as([1 - reward for reward in rewards], witness),
    )


def test_prompts_are_drawn_in_whole_epochs():
    order = PromptOrder(5, per_step=3, seed=0)
    drawn = [i for _ in range(7) for i in order.take(3)]
    for epoch in range(4):
        assert sorted(drawn[5 * epoch : 5 * epoch + 5]) == [0, 1, 2, 3, 4]
    order.begin(4)
    assert order.take(3) == drawn[12:15]
    # Where steps took more than their own, a checkpoint says how many.
    order.begin(2, 11)
    assert order.take(4) == drawn[11:15]
    assert len(PromptOrder(2, per_step=7, seed=0).take(7)) == 7


def test_every_epoch_and_every_seed_draw_the_prompts_in_another_order():
    ordered = [PromptOrder(40, per_step=40, seed=seed) for seed in range(3)]
    orders = [tuple(order.take(40)) for order in ordered for _ in range(4)]
    assert all(sorted(order) == list(range(40)) for order in orders)
    assert len({*orders, tuple(range(40))}) == 13


# What a user may choose ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("penalty", ["k1", "k3", "full"])
def test_all_three_views_of_the_kl_are_logged_whichever_is_the_penalty(tmp_path, penalty, monkeypatch):
    """The last step's, against plain forward passes of the model that answered and of the base, token by token."""
    seen = {}
    update = rlaf.update

    def noted(found, chosen, batch, *more):
        adapter = [p.detach().clone() for p in adapter_parameters(found.policy.model)]
        seen.update(rollouts=batch.rollouts, adapter=adapter)
        return update(found, chosen, batch, *more)

    monkeypatch.setattr(rlaf, "update", noted)
    chosen = settings(kl={"penalty": penalty, "coef": 0.1}, learning_rate=1e-2, steps=3, batch_size=32)
    run = train(chosen, tmp_path / "run")
    lines, rollouts = metrics(run), seen["rollouts"]
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-3)
    assert lines[0]["kl_k3"] == pytest.approx(0, abs=1e-4)
    assert lines[0]["kl_full"] == pytest.approx(0, abs=1e-4)
    assert ("kl_loss" in lines[-1]) == (penalty != "k1")

    policy, base = load_policy(ModelSettings(**TINY)), load_policy(ModelSettings(**TINY)).causal_lm
    load_adapter(policy, run.path / "adapter")
    k1, k3, full = [], [], []
    with torch.no_grad():
        for parameter, weights in zip(adapter_parameters(policy.model), seen["adapter"], strict=True):
            parameter.copy_(weights)
        for prompt, response in zip(rollouts.prompts, rollouts.responses, strict=True):
            ids, at = torch.tensor([[*prompt, *response]]), slice(len(prompt) - 1, -1)
            p = policy.causal_lm(input_ids=ids).logits[0, at].double().log_softmax(-1)
            q = base(input_ids=ids).logits[0, at].double().log_softmax(-1)
            drawn = (p - q)[range(len(response)), response]
            k1.append(float(drawn.sum()))
            k3.append(float(((-drawn).exp() - 1 + drawn).sum()))
            full.append(float((p.exp() * (p - q)).sum()))
    assert lines[-1]["kl"] == pytest.approx(fmean(k1), rel=1e-3, abs=1e-4)
    assert lines[-1]["kl_k3"] == pytest.approx(fmean(k3), rel=1e-3)
    assert lines[-1]["kl_full"] == pytest.approx(fmean(full), rel=1e-3)
    assert fmean(full) > 0.05
    # All three estimate one divergence: two from what was drawn, one exactly at each of its tokens.
    for drawn in (k1, k3):
        gaps = [one - exact for one, exact in zip(drawn, full, strict=True)]
        assert abs(fmean(gaps)) < 4 * stdev(gaps) / math.sqrt(len(gaps))


@pytest.mark.slow
def test_a_kl_loss_holds_the_policy_back(tmp_path):
    moved = {}
    for coef in (0.0, 50.0):
        chosen = settings(kl={"penalty": "full", "coef": coef}, learning_rate=1e-2, steps=4, algorithm="dr_grpo")
        moved[coef] = metrics(train(chosen, tmp_path / str(coef)))[-1]["kl_full"]
    assert moved[50.0] < 0.5 * moved[0.0]


@pytest.mark.slow
def test_other_sampling_settings_are_said_and_corrected(tmp_path):
    said: list[str] = []
    chosen = settings(generation={"temperature": 0.5, "top_p": 0.9}, steps=2)
    lines = metrics(train(chosen, tmp_path / "run", say=said.append))
    assert any("every token is weighted by its probability under the policy" in text for text in said)
    assert lines[0]["sampling_gap"] > 0.5
    assert lines[0]["first_ratio"] == pytest.approx(1, abs=1e-4)  # new against old policy, not against the sampler
    own: list[str] = []
    lines = metrics(train(settings(), tmp_path / "own", say=own.append))
    assert own == []
    assert lines[0]["sampling_gap"] == pytest.approx(0, abs=1e-5)


@pytest.mark.slow
def test_an_estimator_of_ones_own_trains_with_a_critic_or_without(tmp_path, monkeypatch):
    (tmp_path / "rlaf_estimators.py").write_text(
        "from rewardlm.training.objectives import whiten\n"
        "def reinforce(f):\n"
        "    return (f.rewards - f.rewards.mean())[:, None] * f.mask, None\n"
        "def baseline(f):\n"
        "    returns = f.rewards[:, None] * f.mask\n"
        "    return whiten(returns - f.values, f.mask), returns\n"
    )
    monkeypatch.chdir(tmp_path)
    plain = train(settings(algorithm="rlaf_estimators:reinforce"), tmp_path / "plain")
    assert "value_loss" not in metrics(plain)[-1]
    with_critic = train(settings(algorithm="rlaf_estimators:baseline", critic="trunk"), tmp_path / "critic")
    assert metrics(with_critic)[-1]["value_loss"] > 0
    # Without the critic that it asks for it fails, in one line and before anything is learnt.
    with pytest.raises(TrainingError, match="the estimator failed"):
        train(settings(algorithm="rlaf_estimators:baseline"), tmp_path / "none")


@pytest.mark.slow
def test_several_judges_terms_and_witnesses_stand_in_metrics_and_samples(tmp_path, judges):
    terms = {"length": 0.5, "script": 1.0, "refusal": 1.0, "counter_narrative": 2.0}
    chosen = settings(
        reward=["lexical", "rlaf_judges:few_ank"],
        rewards={
            "transform": "probability", "aggregate": "mean_std", "weights": {"lexical": 2.0},
            "terms": {**terms, "similarity": 0.0},
        },
        witness=["lexical2"],
        steps=1,
    )  # fmt: skip
    run = train(chosen, tmp_path / "run")
    [line], samples = metrics(run), list(run.read("samples"))
    assert set(line["toxicity_by_judge"]) == {"lexical", "rlaf_judges:few_ank"}
    assert set(line["toxicity_by_witness"]) == {"lexical2"}
    assert set(line["terms"]) == set(terms)
    assert 0 < line["disagreement"] <= 1
    assert run.meta["rewards"] == ["lexical", "rlaf_judges:few_ank", "starter_pairs"]  # a witness is none
    assert run.meta["paid_for"] == ["refusal", "script"]  # what the audit measures too
    for sample in samples:
        goods = {name: 1 - value for name, value in sample["by_judge"].items()}
        weights = {"lexical": 2 / 3, "rlaf_judges:few_ank": 1 / 3}
        mean = sum(weights[name] * good for name, good in goods.items())
        deviation = math.sqrt(sum(weights[name] * (good - mean) ** 2 for name, good in goods.items()))
        earned = mean - deviation + sum(weight * sample["terms"][name] for name, weight in terms.items())
        assert sample["reward"] == pytest.approx(earned, abs=1e-6)
        assert set(sample["by_witness"]) == {"lexical2"}


@pytest.mark.parametrize(
    ("reward", "found"),
    [
        (["starter"], ["witness"]),
        (["starter#hate", "toxicity+hate"], ["witness"]),
        (["lexical"], ["witness"]),
        (["witness"], ["lexical"]),
        (["mean(starter,witness#hate)"], ["lexical"]),
        (["max(witness,lexical)"], []),
        (["lexical", "witness"], []),
    ],
)
def test_the_default_witness_is_no_part_of_the_reward(reward, found):
    assert witnesses(RlafSettings(model="tiny", reward=reward)) == found


def test_a_reward_that_the_witness_taught_gets_another_witness(tmp_path):
    """A judge of one's own with witness as its teacher."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    revision = lineage_of("witness").family[0].revision
    teacher = {"judge": "witness", "label": "toxicity", "revision": revision, "known": True, "data": []}
    (folder / "judge.json").write_text(json.dumps({"labels": ["toxicity"], "teacher": teacher}))
    assert witnesses(RlafSettings(model="tiny", reward=[str(folder)])) == ["lexical"]


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["grpo", "dr_grpo"])
def test_a_run_records_what_the_penalty_is_and_goes_on(tmp_path, algorithm):
    run = train(settings(steps=1, algorithm=algorithm), tmp_path / "run")
    assert run.meta["settings"]["kl"]["penalty"] == "k3"
    gone_on = train(settings(steps=2, algorithm=algorithm), run.path)
    assert all("kl_loss" in line for line in metrics(gone_on))
    assert gone_on.meta["settings"]["steps"] == 2  # what may change is recorded as it is now
    with pytest.raises(RunError, match=r"kl\.penalty was 'k3', now 'k1'"):
        train(settings(steps=3, algorithm=algorithm, kl={"penalty": "k1"}), run.path)


@pytest.mark.slow
def test_a_run_from_before_a_setting_existed_goes_on_unless_it_is_given(tmp_path):
    run = train(settings(steps=1), tmp_path / "run")
    meta = json.loads((run.path / "run.json").read_text())
    for name in ("entropy_coef", "schedule", "rollout", "dynamic_sampling", "loss", "clip_range_high"):
        del meta["settings"][name]
    for name in ("reference_every", "reference_mix"):
        del meta["settings"]["kl"][name]
    del meta["settings"]["rewards"]["terms"]["similarity_enough"]
    (run.path / "run.json").write_text(json.dumps(meta))
    # Similarity had no limit then; its default has one now.
    with pytest.raises(RunError, match=r"similarity_enough was 1\.0, now 0\.3"):
        train(settings(steps=2), run.path)
    as_before = {**PLAIN, "terms": {**PLAIN["terms"], "similarity_enough": 1}}
    with pytest.raises(RunError, match=r"entropy_coef was 0\.0, now 0\.1"):
        train(settings(steps=2, rewards=as_before, entropy_coef=0.1), run.path)
    assert len(metrics(train(settings(steps=2, rewards=as_before), run.path))) == 2


@pytest.mark.parametrize(
    ("reward", "witness", "found"),
    [
        (["starter"], None, ["witness"]),
        (["witness"], None, ["lexical"]),
        (["max(lexical,witness)"], None, []),
        (["lexical"], ["starter"], ["starter"]),
        (["starter"], [], []),
        (["starter"], ["none"], []),
    ],
)
def test_a_witness_is_no_judge_of_the_reward(reward, witness, found):
    assert witnesses(settings(reward=reward, witness=witness)) == found


@pytest.mark.parametrize(
    ("reward", "witness"),
    [
        (["lexical"], ["lexical2", "lexical"]),
        (["toxicity+hate"], ["starter"]),
        (["mean(lexical,lexical2)"], ["lexical2"]),
    ],
)
def test_a_judge_of_the_reward_is_no_witness(reward, witness):
    with pytest.raises(ConfigError, match=f"witness {witness[-1]} is a judge of the reward"):
        witnesses(settings(reward=reward, witness=witness))


def test_a_witness_that_fails_is_said_and_stops_nothing(tmp_path, judges):
    (tmp_path / "rlaf_mute.py").write_text(
        "def mute(texts):\n"
        "    if any(t.endswith('.') for t in texts):\n"
        "        return [0.9 if 'stupid' in t or 'trash' in t or 'moron' in t else 0.1 for t in texts]\n"
        "    raise OSError('gone')\n"
    )
    with pytest.warns(UserWarning, match=r"witness rlaf_mute:mute could not score 8 of 8 answers \(OSError: gone\)"):
        run = train(settings(reward=["lexical"], witness=["rlaf_mute:mute"], steps=1, seed=4), tmp_path / "run")
    assert metrics(run)[0]["toxicity_by_witness"] == {}


@pytest.mark.slow
def test_what_stopped_a_run_is_written_down_and_taken_back_when_it_goes_on(tmp_path):
    chosen = settings(learning_rate=0.05, steps=3, algorithm="rloo", kl=KlSettings(max=0.5))
    with pytest.raises(TrainingError, match="pass it with --adapter and choose another --out"):
        train(chosen, tmp_path / "run")
    meta = Run.open(tmp_path / "run").meta
    assert meta["status"] == "stopped"
    assert "KL to the reference is" in meta["stopped"]

    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(settings(steps=2), tmp_path / "other", report=interrupt)
    assert Run.open(tmp_path / "other").meta["stopped"] == "interrupted"
    gone_on = train(settings(steps=2), tmp_path / "other")
    assert (gone_on.meta["status"], gone_on.meta["stopped"]) == ("finished", None)


@pytest.mark.slow
def test_a_run_goes_on_with_the_adapter_and_the_judges_that_it_began_with(tmp_path):
    first = train(settings(steps=1, learning_rate=1e-2), tmp_path / "first")
    chosen = settings(steps=1, adapter=first.path, learning_rate=1e-2)
    run = train(chosen, tmp_path / "second")
    assert set(run.meta["judges"]) == {"starter"}
    assert run.meta["judges"]["starter"]  # its weights' hash
    # The adapter that is the reference is overwritten by a longer training.
    train(settings(steps=3, learning_rate=1e-2), first.path)
    with pytest.raises(RunError, match="began with another adapter to start from"):
        train(settings(steps=2, adapter=first.path, learning_rate=1e-2), tmp_path / "second")
    meta = json.loads((first.path / "run.json").read_text())
    meta["judges"]["starter"] = "another"
    (first.path / "run.json").write_text(json.dumps(meta))
    with pytest.raises(RunError, match="began with other revisions of its judges"):
        train(settings(steps=4, learning_rate=1e-2), first.path)


@pytest.mark.slow
def test_an_adapter_on_a_tied_head_is_sampled_as_it_is_trained(tmp_path):
    """Merged into a matrix that embeds tokens too, it would answer as another model than the one that learns."""
    chosen = settings(lora={"r": 4, "targets": ["q_proj", "lm_head"]}, learning_rate=2e-2, steps=3)
    for line in metrics(train(chosen, tmp_path / "run")):
        assert line["first_ratio"] == pytest.approx(1, abs=1e-3)
        assert line["kl_full"] is None  # two heads


@pytest.mark.slow
def test_a_batch_without_spread_inside_its_groups_teaches_nothing_and_is_said(tmp_path, monkeypatch):
    (tmp_path / "rlaf_by_prompt.py").write_text(
        "def judge(texts):\n"
        "    if any(t.endswith('taxes.') for t in texts):\n"
        "        return [0.9 if 'stupid' in t or 'trash' in t or 'moron' in t else 0.1 for t in texts]\n"
        "    return [0.2 if i < 4 else 0.7 for i in range(len(texts))]\n"
    )
    monkeypatch.chdir(tmp_path)
    said = "constant reward: within every group all answers got the same"
    with pytest.warns(UserWarning, match=f"{said}: the reward teaches nothing in this step, only the KL penalty pulls"):
        train(settings(reward=["rlaf_by_prompt:judge"], algorithm="grpo", steps=1), tmp_path / "run")
    with pytest.warns(UserWarning, match=f"{said}, so the reward teaches nothing in this step"):
        run = train(
            settings(reward=["rlaf_by_prompt:judge"], algorithm="grpo", steps=1, kl={"coef": 0.0}), tmp_path / "free"
        )
    assert all(not bool(tensor.any()) for name, tensor in adapter(run.path).items() if "lora_B" in name)


@pytest.mark.slow
def test_in_half_precision_answers_are_scored_in_the_passes_that_learn_from_them(tmp_path, judges, monkeypatch):
    """What else is in a pass decides how it is rounded, and an answer's ratio multiplies its tokens' rounding."""
    passes: dict[bool, list] = {False: [], True: []}

    def noted(causal_lm, prompts, responses, rows, **more):
        texts = [(tuple(prompts[row]), tuple(responses[row])) for row in rows]
        passes[torch.is_grad_enabled()].append(texts)
        return forward_rows(causal_lm, prompts, responses, rows, **more)

    for module in (logprobs, learner):
        monkeypatch.setattr(module, "forward_rows", noted)
    chosen = settings(
        **{"dtype": "bfloat16", "batch_size": 32, "max_new_tokens": 16, "minibatches": 3, "ppo_epochs": 1, "steps": 1},
        **{"micro_batch_tokens": 256, "reward": ["rlaf_judges:fussy"], "rewards": {"max_failed_share": 1.0}},
    )
    [line] = metrics(train(chosen, tmp_path / "run"))
    assert line["dropped"]
    learnt = passes[True]
    assert len(learnt) > 3  # a minibatch is several passes
    # The policy's own passes, those that nobody learns from last, and the reference's.
    assert passes[False][: len(learnt)] == learnt
    assert len(passes[False]) % 2 == 0
    half = len(passes[False]) // 2
    assert passes[False][half:] == passes[False][:half]
    assert sum(map(len, passes[False][len(learnt) : half])) == 32 - line["answers"]


@pytest.mark.slow
def test_dropout_is_left_out_and_that_is_said(tmp_path):
    said: list[str] = []
    line = metrics(train(settings(lora={"dropout": 0.5}, steps=1), tmp_path / "run", say=said.append))[0]
    assert any("lora.dropout is left out" in text for text in said)
    assert line["first_ratio"] == pytest.approx(1, abs=1e-4)


@pytest.mark.slow
def test_samples_are_of_different_prompts_and_say_why_one_earned_nothing(tmp_path, judges):
    chosen = settings(
        reward=["rlaf_judges:fussy"], algorithm="grpo", batch_size=16, steps=1, rewards={"max_failed_share": 1.0}
    )
    samples = list(train(chosen, tmp_path / "run").read("samples"))
    assert len({sample["prompt"] for sample in samples}) == len(samples) == 4
    for sample in samples:
        assert (sample["reward"] is None) == (sample["reason"] == "ValueError: not this one")
