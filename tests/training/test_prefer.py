"""Preference training on tiny models: its losses and gradients against plain formulas, its rounds, and its limits."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from letters import LETTERS, save_model, write_letters
from safetensors.torch import load_file
from transformers import AutoTokenizer

from rewardlm.config import LoraSettings, ModelSettings, PreferSettings
from rewardlm.data.dialogues import load_dialogues, pairs
from rewardlm.data.preferences import load_preferences
from rewardlm.errors import ConfigError, DataError, RunError, ScorerError, TrainingError
from rewardlm.models.load import Policy, load_policy
from rewardlm.models.logprobs import score_rows
from rewardlm.models.lora import add_lora, load_adapter
from rewardlm.runs import Run, trained_by
from rewardlm.training import drawn, prefer_source
from rewardlm.training.prefer import prefer
from rewardlm.training.prefer_rows import given_examples
from rewardlm.types import Message

pytestmark = pytest.mark.slow

TINY = {"model": "tiny", "device": "cpu", "dtype": "float32"}
# What the default pays for besides, left out: none of these tests is about it, and its judges take seconds to load.
PLAIN = {"transform": "probability", "terms": {"refusal": 0, "similarity": 0, "counter_narrative": 0}}
GIVEN = [
    ("Who are they?", "People like you and me.", "Thieves, all of them."),
    ("Why do they come here?", "To work, or because there is a war.", "For our money."),
    ("Should they vote?", "If they are citizens, yes.", "No."),
    ("What do they want?", "What everybody wants.", "To take what is ours, as they always did."),
]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def letters(tmp_path, monkeypatch) -> Path:
    """A folder with a model of eight letters and prompts, which is entered. The judge ``prefer_judge:taste`` has an
    opinion of every text, and finds none toxic; ``reverse`` is the wrong way round. ``few_b`` finds a text toxic that
    has few letters b, ``some_b`` agrees with it by and large, and ``many_b`` says the contrary."""
    write_letters(tmp_path)
    (tmp_path / "prefer_judge.py").write_text(
        "import random\n"
        "def taste(texts):\n"
        "    if any('.' in t for t in texts):  # the check of the sign\n"
        "        return [0.9 if 'stupid' in t or 'trash' in t or 'moron' in t else 0.1 for t in texts]\n"
        "    return [0.5 * random.Random(t).random() for t in texts]\n"
        "def strict(texts):\n"
        "    return [0.1 if '.' in t and 'stupid' not in t else 0.9 for t in texts]\n"
        "def reverse(texts):\n"
        "    return [1 - value for value in taste(texts)]\n"
        "def many_b(texts):\n"
        "    if any('.' in t for t in texts):\n"
        "        return taste(texts)\n"
        "    return [t.count('b') / max(1, len(t.split())) for t in texts]\n"
        "def few_b(texts):\n"
        "    return taste(texts) if any('.' in t for t in texts) else [1 - value for value in many_b(texts)]\n"
        "def some_b(texts):\n"
        "    return taste(texts) if any('.' in t for t in texts) else [value**2 for value in few_b(texts)]\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings(**changes) -> PreferSettings:
    base = {
        "model": "model",
        "device": "cpu",
        "dtype": "float32",
        "prompts": "prompts.txt",
        "reward": ["prefer_judge:taste"],
        "witness": [],
        "samples": 8,
        "steps": 4,
        "batch_size": 4,
        "max_new_tokens": 4,
        "learning_rate": 1e-2,
        "beta": 0.1,
        "sft_weight": 0.0,
        "rewards": PLAIN,
        "pairs": {"margin": 0.05},
        "retain": {"coef": 0},  # test_retain.py has it
    }
    return PreferSettings(**{**base, **changes})


def given(folder: Path, **changes) -> PreferSettings:
    path = folder / "mine.jsonl"
    rows = [{"prompt": prompt, "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in GIVEN]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = {
        "preferences": path, "steps": 1, "batch_size": 4, "learning_rate": 1e-3, "beta": 0.1, "sft_weight": 0.0,
        "retain": {"coef": 0},
    }  # fmt: skip
    return PreferSettings(**{**TINY, **base, **changes})


def later_rounds_draw_nothing(patched: pytest.MonkeyPatch, error: BaseException) -> None:
    """``error`` ends every round but the first before an answer is drawn."""
    draw = drawn.DrawnAnswers._draw

    def broken(self, round_number: int, asked: list[int], **more) -> list[dict]:
        if round_number:
            raise error
        return draw(self, round_number, asked, **more)

    patched.setattr(drawn.DrawnAnswers, "_draw", broken)


def metrics(run: Run) -> list[dict]:
    return list(run.read("metrics"))


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(str(run.adapter / "adapter_model.safetensors"))


# One step against plain formulas --------------------------------------------------------------------------------------


def tokens(policy: Policy, prompt: str, answer: str) -> tuple[list[int], int]:
    """Ids of a prompt with its answer, and where the answer begins."""
    encoded = policy.chat.encode_pair([Message("user", prompt)], Message("assistant", answer))
    return encoded.input_ids, encoded.completion_mask.index(1)


def plain_logprob(policy: Policy, prompt: str, answer: str) -> torch.Tensor:
    """ln p(answer | prompt), from the model's own logits, a token at a time."""
    ids, begins = tokens(policy, prompt, answer)
    logprobs = policy.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return torch.stack([logprobs[place - 1, ids[place]] for place in range(begins, len(ids))]).sum()


def n_tokens(policy: Policy, prompt: str, answer: str) -> int:
    ids, begins = tokens(policy, prompt, answer)
    return len(ids) - begins


def dpo_loss(policy: Policy, beta: float, sft_weight: float) -> torch.Tensor:
    """Rafailov et al. 2023, equation 7, and the chosen answers' mean negative log-likelihood a token."""
    with torch.no_grad(), policy.model.disable_adapter():
        reference = [[plain_logprob(policy, p, answer) for answer in (c, r)] for p, c, r in GIVEN]
    losses, surprise, counted = [], torch.zeros(()), 0
    for (prompt, chosen, rejected), (of_chosen, of_rejected) in zip(GIVEN, reference, strict=True):
        good, bad = plain_logprob(policy, prompt, chosen), plain_logprob(policy, prompt, rejected)
        losses.append(-F.logsigmoid(beta * ((good - of_chosen) - (bad - of_rejected))))
        surprise, counted = surprise - good, counted + n_tokens(policy, prompt, chosen)
    return torch.stack(losses).mean() + sft_weight * surprise / counted


def stepped(loss_of, steps: int, rate: float) -> tuple[dict[str, torch.Tensor], list[float]]:
    """A fresh adapter after plain AdamW steps on a cosine schedule, with the losses before each."""
    policy = load_policy(ModelSettings(**TINY))
    add_lora(policy, LoraSettings(), seed=0)
    learnt = [parameter for parameter in policy.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=rate, weight_decay=0.0)
    losses = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        loss = loss_of(policy)
        losses.append(float(loss.detach()))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learnt, 1.0)
        optimizer.step()
    named = {n.replace(".default", ""): p.detach() for n, p in policy.model.named_parameters() if p.requires_grad}
    return named, losses


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("sft_weight", [0.0, 0.3])
def test_dpo_steps_as_the_formula_says(tmp_path, monkeypatch, fast, sft_weight):
    if not fast:
        monkeypatch.setenv("REWARDLM_FASTPATH", "0")
    chosen = given(tmp_path, steps=3, beta=0.5, sft_weight=sft_weight, micro_batch_size=4)
    run = prefer(chosen, tmp_path / "run")
    expected, losses = stepped(lambda policy: dpo_loss(policy, 0.5, sft_weight), 3, 1e-3)
    assert [line["loss"] for line in metrics(run)] == pytest.approx(losses, abs=2e-4)
    if not sft_weight:
        assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    found = weights(run)
    assert found.keys() == expected.keys()
    assert any(bool(tensor.any()) for name, tensor in found.items() if "lora_B" in name)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-4, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def kto_loss(policy: Policy, beta: float, rows: list[dict]) -> torch.Tensor:
    """Ethayarajh et al. 2024, equation 7, for rows in microbatches of four; the KL comes from each one's neighbour."""

    def logprob(prompt: list[int], answer: list[int]) -> torch.Tensor:
        ids = [*prompt, *answer]
        logprobs = policy.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        return torch.stack([logprobs[place - 1, ids[place]] for place in range(len(prompt), len(ids))]).sum()

    def log_ratio(prompt: list[int], answer: list[int]) -> torch.Tensor:
        with torch.no_grad(), policy.model.disable_adapter():
            reference = logprob(prompt, answer)
        return logprob(prompt, answer) - reference

    batches = []
    for start in range(0, len(rows), 4):
        batch = rows[start : start + 4]
        with torch.no_grad():
            kl = torch.stack(
                [log_ratio(row["prompt_ids"], batch[i - 1]["completion_ids"]) for i, row in enumerate(batch)]
            )
            kl = kl.mean().clamp(min=0)
        losses = []
        for row in batch:
            ratio = log_ratio(row["prompt_ids"], row["completion_ids"])
            losses.append(1 - torch.sigmoid(beta * ((ratio - kl) if row["label"] else (kl - ratio))))
        batches.append(torch.stack(losses).mean())
    return torch.stack(batches).mean()


def test_kto_steps_as_the_formula_says(tmp_path, monkeypatch):
    from rewardlm.training import prefer as flow

    seen: list[list[dict]] = []
    rows_of = flow.answer_rows
    monkeypatch.setattr(flow, "answer_rows", lambda *given: seen.append(rows_of(*given)) or seen[-1])
    run = prefer(given(tmp_path, method="kto", steps=2, batch_size=8, beta=0.5), tmp_path / "run")
    [rows] = seen
    steps = iter([rows[:8], rows[8:]])
    expected, losses = stepped(lambda policy: kto_loss(policy, 0.5, next(steps)), 2, 1e-3)
    assert [line["loss"] for line in metrics(run)] == pytest.approx(losses, abs=2e-4)
    assert losses[0] == pytest.approx(0.5, abs=1e-6)
    found = weights(run)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-4, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
    assert {row["label"] for row in rows[:8]} == {True, False}


# Of beta and of each answer's log-ratio to the reference: of the chosen one, of the rejected one, and both a token.
LOSSES = {
    "ipo": lambda beta, _c, _r, c, r: (c - r - 1 / (2 * beta)) ** 2,  # Azar et al. 2023, equation 17
    "hinge": lambda beta, c, r, *_: F.relu(1 - beta * (c - r)),  # Zhao et al. 2023
    "sigmoid_norm": lambda beta, _c, _r, c, r: -F.logsigmoid(beta * (c - r)),
    "nca_pair": lambda beta, c, r, *_: (  # Chen et al. 2024
        -F.logsigmoid(beta * c) - 0.5 * F.logsigmoid(-beta * c) - 0.5 * F.logsigmoid(-beta * r)
    ),
    "apo_zero": lambda beta, c, r, *_: (
        1 - torch.sigmoid(beta * c) + torch.sigmoid(beta * r)
    ),  # D'Oosterlinck et al. 2024
    "apo_down": lambda beta, c, r, *_: torch.sigmoid(beta * c) + 1 - torch.sigmoid(beta * (c - r)),
    "robust": lambda beta, c, r, *_: (  # Chowdhury et al. 2024, with a fifth of the pairs the wrong way round
        (-0.8 * F.logsigmoid(beta * (c - r)) + 0.2 * F.logsigmoid(-beta * (c - r))) / 0.6
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_of_trl_is_what_its_paper_says(tmp_path, name):
    """The first step's value, where all log-ratios are 0, and the second's, where they are not."""
    more = {"label_smoothing": 0.2} if name == "robust" else {}
    run = prefer(given(tmp_path, loss_type=name, steps=2, beta=0.5, learning_rate=1e-2, **more), tmp_path / "run")

    def loss(policy: Policy) -> torch.Tensor:
        found = []
        for prompt, chosen, rejected in GIVEN:
            ratios, by_token = [], []
            for answer in (chosen, rejected):
                with torch.no_grad(), policy.model.disable_adapter():
                    reference = plain_logprob(policy, prompt, answer)
                ratios.append(plain_logprob(policy, prompt, answer) - reference)
                by_token.append(ratios[-1] / n_tokens(policy, prompt, answer))
            found.append(LOSSES[name](0.5, *ratios, *by_token))
        return torch.stack(found).mean()

    _, losses = stepped(loss, 2, 1e-2)
    assert [line["loss"] for line in metrics(run)] == pytest.approx(losses, rel=2e-3)
    assert abs(losses[1] - losses[0]) > 0.01 * losses[0]


def test_bco_begins_where_it_should(tmp_path):
    """Jung et al. 2024: two logistic losses, both ln 2 at first; later ones are shifted by a running mean."""
    run = prefer(given(tmp_path, loss_type="bco_pair"), tmp_path / "run")
    assert metrics(run)[0]["loss"] == pytest.approx(2 * math.log(2), abs=1e-3)


def test_the_best_policy_by_known_preferences(tmp_path):
    """Preferences that follow Bradley and Terry's odds of known rewards: DPO's best policy is ref·exp(r/β)
    (Rafailov et al. 2023, equation 4)."""
    save_model(tmp_path / "model", positions=16)
    rewards = {letter: 0.35 * place for place, letter in enumerate(LETTERS)}
    beta, copies = 0.5, 40
    with open(tmp_path / "known.jsonl", "w") as file:
        for one in LETTERS:
            for other in LETTERS:
                if one != other:
                    odds = 1 / (1 + math.exp(rewards[other] - rewards[one]))
                    row = json.dumps({"prompt": "?", "chosen": one, "rejected": other})
                    file.write(f"{row}\n" * round(copies * odds))
    chosen = PreferSettings(
        model=str(tmp_path / "model"), device="cpu", dtype="float32", preferences=tmp_path / "known.jsonl", beta=beta,
        steps=150, batch_size=112, micro_batch_size=112, learning_rate=2e-2, lora={"r": 8, "alpha": 16},
        checkpoint_every=1000, sft_weight=0.0,
    )  # fmt: skip
    prefer(chosen, tmp_path / "run")
    policy = load_policy(ModelSettings(model=str(tmp_path / "model"), device="cpu", dtype="float32"))

    def logprobs() -> torch.Tensor:
        prompt = policy.chat.encode_prompt([Message("user", "?")])
        answers = [policy.chat.encode_pair([Message("user", "?")], Message("assistant", one)) for one in LETTERS]
        listed = [answer.input_ids[len(prompt) :] for answer in answers]
        return score_rows(policy.causal_lm, [prompt] * len(listed), listed, 10**6)[0].sum(1)

    before = logprobs()
    load_adapter(policy, tmp_path / "run" / "adapter")
    moved = logprobs() - before
    wanted = torch.tensor([rewards[letter] / beta for letter in LETTERS])
    # Only differences are determined.
    moved, wanted = moved - moved.mean(), wanted - wanted.mean()
    assert float((moved - wanted).abs().max()) < 0.35
    assert float(wanted.max()) > 2


# Rounds ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["dpo", "kto", "raft"])
def test_rounds_draw_judge_and_learn(letters, method):
    run = prefer(settings(method=method, steps=8, rounds=2), letters / "run")
    lines = metrics(run)
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert [line["round"] for line in lines] == [1] * 4 + [2] * 4
    assert all(math.isfinite(line["loss"]) for line in lines)
    answers = list(run.read("answers"))
    ids = [list(dict.fromkeys(one["prompt_id"] for one in answers if one["round"] == n)) for n in (1, 2)]
    # There are fewer pairs than four steps want, so each round asks everybody, and begins with other prompts.
    assert ids[1] == ids[0][4:] + ids[0][:4]
    assert len(answers) == 2 * 8 * 8
    told = run.meta["preferences"]["rounds"]
    kept = list(run.read("preferences"))
    assert [one["found"] for one in told] == [sum(line["round"] == number for line in kept) for number in (1, 2)]
    assert run.meta["rewards"] == ["prefer_judge:taste"]
    assert (run.label, run.meta["status"]) == (method.upper(), "finished")
    by_key = {(one["round"], one["prompt_id"], one["sample"]): one for one in answers}
    for line in kept:
        good, bad = line["samples"]
        best = by_key[line["round"], line["prompt_id"], good]
        assert best["text"] == line["completion" if method == "raft" else "chosen"][0]["content"]
        if method == "raft":
            assert bad is None
            assert not {"chosen", "rejected"} & line.keys()
        else:
            assert by_key[line["round"], line["prompt_id"], bad]["text"] == line["rejected"][0]["content"]
            assert line["rewards"][0] - line["rewards"][1] >= 0.05


@pytest.mark.parametrize("method", ["dpo", "kto", "raft"])
def test_it_learns_what_the_judge_wants(letters, method):
    """Answers of the trained model, to the same prompts, earn more than those of the model before."""
    rate = {"dpo": 1e-2, "kto": 2e-2, "raft": 2e-2}[method]
    chosen = settings(method=method, samples=16, steps=60, batch_size=8, learning_rate=rate)
    first = prefer(chosen, letters / "run")
    after = prefer(settings(adapter=first.path, samples=16, steps=1), letters / "after")
    before, now = (metrics(run)[0]["reward_mean"] for run in (first, after))
    assert now > before + 0.04


def test_answers_learn_to_end_where_pairs_ask_for_it(letters):
    """The judge has no opinion of how an answer ends."""
    ended, lost = {}, {}
    for gap in (None, 0.5):
        pairs = {"margin": 0.05, "ended": False, "length_ratio": None, "ended_gap": gap}
        chosen = settings(samples=16, steps=40, batch_size=8, pairs=pairs)
        run = prefer(chosen, letters / f"run-{gap}")
        after = prefer(settings(adapter=run.path, samples=16, steps=1), letters / f"after-{gap}")
        ended[gap] = 1 - metrics(after)[0]["truncated_fraction"]
        lost[gap] = run.meta["preferences"]["rounds"][0]["cut_off_penalty"]
    assert ended[0.5] > ended[None] + 0.2
    assert lost[None] == 0 < lost[0.5] <= 0.3
    # What was learnt is what was compared: the rewards in the file have lost it too.
    drawn_ones = {(one["prompt_id"], one["sample"]): one for one in run.read("answers")}
    for pair in run.read("preferences"):
        for sample, reward in zip(pair["samples"], pair["rewards"], strict=True):
            one = drawn_ones[pair["prompt_id"], sample]
            toxicity = one["judges"]["prefer_judge:taste"]["values"]["toxicity"]
            assert reward == pytest.approx(1 - toxicity - lost[0.5] * (one["finish"] == "length"))


def test_a_stored_preference_is_a_file_of_preferences(letters):
    first = prefer(settings(), letters / "first")
    again = settings(preferences=first.path / "preferences.jsonl", steps=2)
    second = prefer(again, letters / "second")
    told = second.meta["preferences"]
    assert told["found"] + told["dropped"] == first.meta["preferences"]["rounds"][0]["found"]
    assert metrics(second)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    # Its pairs were chosen by the first training's judge, whose word is no proof now either.
    assert second.meta["rewards"] == ["prefer_judge:taste"]
    elsewhere = letters / "mine.jsonl"
    elsewhere.write_text(again.preferences.read_text())
    third = prefer(settings(preferences=elsewhere, steps=4), letters / "third")
    assert third.meta["rewards"] == []
    third.update(status="running")
    lines = elsewhere.read_text().splitlines()
    elsewhere.write_text("\n".join(lines[::-1]))
    with pytest.raises(RunError, match="began with other preferences"):
        prefer(settings(preferences=elsewhere, steps=4), letters / "third")


@pytest.mark.parametrize("method", ["dpo", "raft"])
def test_a_stored_answer_that_was_cut_off_is_not_learnt_as_one_that_ends(letters, method):
    chosen = settings(method=method, pairs={"margin": 0.05, "ended": False, "length_ratio": None})
    run = prefer(chosen, letters / "run")
    finishes = {(one["prompt_id"], one["sample"]): one["finish"] for one in run.read("answers")}
    policy = load_policy(chosen)
    found = given_examples(policy, load_preferences(run.path / "preferences.jsonl", method=method), 64)
    assert found.dropped == 0
    seen = set()
    for line, example in zip(run.read("preferences"), found.examples, strict=True):
        for sample, side in zip(line["samples"], (example.chosen, example.rejected), strict=True):
            if side is not None:
                seen.add(finishes[line["prompt_id"], sample])
                assert (side[-1] == policy.tokenizer.eos_token_id) is (finishes[line["prompt_id"], sample] == "stop")
    assert seen == {"stop", "length"}


def test_the_best_answers_of_a_run_can_be_learnt_again(letters, monkeypatch):
    """By raft from the file that raft left, as it is now and as it was, and by fine-tuning; dpo has no use for it."""
    from rewardlm.training import prefer as flow

    learnt: list[set[tuple[tuple[int, ...], ...]]] = []
    rows_of = flow.best_rows
    model = AutoTokenizer.from_pretrained("model")

    def seen(*given):
        rows = rows_of(*given)
        begins = [(row["input_ids"], row["completion_mask"].index(1)) for row in rows]
        ended = [
            (tuple(ids[:begin]), tuple(i for i in ids[begin:] if i != model.eos_token_id)) for ids, begin in begins
        ]
        learnt.append(set(ended))
        return rows

    monkeypatch.setattr(flow, "best_rows", seen)
    first = prefer(settings(method="raft", steps=8), letters / "first")
    mine = first.path / "preferences.jsonl"
    prefer(settings(method="raft", preferences=mine, steps=8), letters / "second")
    lines = list(first.read("preferences"))
    before = [
        {"prompt": line["prompt"], "chosen": line["completion"], "rejected": None, "round": 1, "samples": [0, None]}
        for line in lines
    ]
    (letters / "before.jsonl").write_text("".join(json.dumps(line) + "\n" for line in before))
    prefer(settings(method="raft", preferences="before.jsonl", steps=8), letters / "third")
    texts = {(line["prompt"][0]["content"], line["completion"][0]["content"]) for line in lines}
    assert len(texts) > 4
    assert {(model.decode(prompt).replace(" ", ""), model.decode(answer)) for prompt, answer in learnt[0]} == texts
    # This tokenizer puts blanks between letters, which it does not take away when it reads them.
    encoded = {tuple(tuple(model(side)["input_ids"]) for side in both) for both in texts}
    assert learnt[1] == learnt[2] == encoded
    dialogues = pairs(load_dialogues(str(mine)).dialogues).pairs
    assert {(pair.history[-1].text, pair.answer.text) for pair in dialogues} == texts
    with pytest.raises(DataError, match="which --method raft learns; expected prompt, chosen and rejected"):
        prefer(settings(preferences=mine), letters / "fourth")


def test_answers_of_another_run_are_used_again(letters, monkeypatch):
    first = prefer(settings(), letters / "first")
    with monkeypatch.context() as patched:
        generate, asked = drawn.generate, []
        patched.setattr(drawn, "generate", lambda p, r, **more: asked.append(len(r)) or generate(p, r, **more))
        second = prefer(settings(method="raft", answers=first.path), letters / "second")
        # The trained model is asked all prompts once; nothing is drawn a second time.
        assert asked == [8]
    assert [one["text"] for one in second.read("answers")] == [one["text"] for one in first.read("answers")]
    rounds = prefer(settings(rounds=2, answers=first.path), letters / "rounds")
    firsts = [one["text"] for one in rounds.read("answers") if one["round"] == 1]
    assert firsts == [one["text"] for one in first.read("answers")]
    # A witness that the first run did not have reads the answers now.
    watched = prefer(settings(answers=first.path, witness=["prefer_judge:strict"]), letters / "watched")
    assert metrics(watched)[0]["toxicity_by_witness"]["prefer_judge:strict"] == 0.9
    with pytest.raises(RunError, match=r"drawn or judged otherwise \(max_new_tokens\)"):
        prefer(settings(answers=first.path, max_new_tokens=3), letters / "third")
    (first.path / "answers.jsonl").unlink()
    with pytest.raises(RunError, match="has no answers yet"):
        prefer(settings(answers=first.path), letters / "fourth")


def test_a_round_asks_other_prompts_and_stops_when_it_has_enough(letters, monkeypatch):
    """Eight prompts, two at a time, in three rounds: each begins with its own three."""
    monkeypatch.setattr(drawn, "CHUNK", 2)
    run = prefer(settings(rounds=3, steps=3, batch_size=1, micro_batch_size=1), letters / "run")
    asked = [{one["prompt_id"] for one in run.read("answers") if one["round"] == number} for number in (1, 2, 3)]
    found = [one["found"] for one in run.meta["preferences"]["rounds"]]
    assert all(pairs >= 1 for pairs in found)
    assert [len(one) for one in asked] == [2, 2, 2]
    assert len(set.union(*asked)) == 6


def test_it_goes_on_from_an_adapter_that_is_also_the_reference(letters):
    first = prefer(settings(), letters / "first")
    second = prefer(settings(adapter=first.path, steps=1), letters / "second")
    line = metrics(second)[0]
    # The first step's policy is its reference: every log-ratio is 0.
    assert line["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert line["implicit_reward_chosen"] == pytest.approx(0, abs=1e-5)
    assert trained_by(second.adapter) == "prefer+prefer"
    assert any(not torch.equal(tensor, weights(first)[name]) for name, tensor in weights(second).items())


# A run that was stopped -----------------------------------------------------------------------------------------------


def test_a_run_that_died_while_drawing_draws_the_rest_to_the_same(letters, monkeypatch):
    monkeypatch.setattr(drawn, "CHUNK", 2)
    whole = prefer(settings(rounds=2), letters / "whole")
    calls = []
    generate = drawn.generate

    def dies(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return generate(*args, **kwargs)

    monkeypatch.setattr(drawn, "generate", dies)
    with pytest.raises(KeyboardInterrupt):
        prefer(settings(rounds=2), letters / "died")
    assert Run.open(letters / "died").meta["status"] == "stopped"
    path = letters / "died" / "answers.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-3]) + lines[-3][:20])  # half of the second round's first chunk, and half a line
    died = prefer(settings(rounds=2), letters / "died")
    assert list(died.read("answers")) == list(whole.read("answers"))
    assert weights(died).keys() == weights(whole).keys()
    for name, tensor in weights(whole).items():
        assert torch.equal(weights(died)[name], tensor), name
    numbers = ("step", "loss", "grad_norm", "reward_mean", "pairs", "warnings")
    assert [[a[n] for n in numbers] for a in metrics(died)] == [[b[n] for n in numbers] for b in metrics(whole)]


def test_what_it_must_not_go_on_with(letters):
    prefer(settings(), letters / "run")
    (letters / "run" / "run.json").write_text(
        json.dumps({**json.loads((letters / "run" / "run.json").read_text()), "status": "running"})
    )
    with pytest.raises(RunError, match="other settings"):
        prefer(settings(beta=0.7), letters / "run")
    meta = json.loads((letters / "run" / "run.json").read_text())
    (letters / "run" / "run.json").write_text(json.dumps({**meta, "term_judges": {"counter_narrative": "other"}}))
    with pytest.raises(RunError, match="another revision of what judges its terms"):
        prefer(settings(), letters / "run")
    (letters / "run" / "run.json").write_text(json.dumps(meta))
    (letters / "prompts.txt").write_text("?a\n?b\n")
    with pytest.raises(RunError, match="other prompts"):
        prefer(settings(), letters / "run")


def test_a_run_from_before_a_setting_existed_goes_on(letters):
    run = prefer(settings(pairs={"margin": 0.05, "max_toxicity": 0.5}), letters / "run")
    meta = json.loads((run.path / "run.json").read_text())
    del meta["settings"]["rewards"]["terms"]["similarity_enough"], meta["settings"]["pairs"]["max_toxicity"]
    del meta["settings"]["retain"], meta["term_judges"]
    (run.path / "run.json").write_text(json.dumps({**meta, "status": "stopped"}))
    again = prefer(settings(pairs={"margin": 0.05, "max_toxicity": 0.5}), run.path)
    assert again.finished
    with pytest.raises(RunError, match=r"max_toxicity was 0\.5, now 1\.0"):
        prefer(settings(), run.path)


# The trained model ----------------------------------------------------------------------------------------------------


def gamed(witness: str, **changes) -> PreferSettings:
    """A training on 64 prompts that learns the letter b in its one round: the reward's judge finds others toxic."""
    Path("prompts.txt").write_text("".join(f"?{one}{other}\n" for one in LETTERS for other in LETTERS))
    base = {"reward": ["prefer_judge:few_b"], "witness": [f"prefer_judge:{witness}"], "steps": 40, "batch_size": 8}
    return settings(**{**base, **changes})


@pytest.fixture
def looks(monkeypatch) -> list[list[dict]]:
    """The answers that trained models give, with what was said of them, as they come."""
    found: list[list[dict]] = []
    draw = drawn.DrawnAnswers._draw

    def kept(self, round_number, asked, **more):
        records = draw(self, round_number, asked, **more)
        if round_number == self.settings.rounds:
            found.append(records)
        return records

    monkeypatch.setattr(drawn.DrawnAnswers, "_draw", kept)
    return found


def means(records: list[dict]) -> dict:
    """Of answers as answers.jsonl has them: what ``preferences.look`` of run.json says of them."""

    def mean(values) -> float:
        values = list(values)
        return pytest.approx(sum(values) / len(values), abs=1e-9)

    def said(kind: str) -> list[float]:
        return [v["values"]["toxicity"] for r in records for v in r[kind].values() if r["text"].strip()]

    [witness] = records[0]["witnesses"]
    return {
        "answers": len(records),
        "toxicity": mean(said("judges")),
        "by_witness": {witness: mean(said("witnesses"))},
        "ended": mean(r["finish"] == "stop" for r in records),
        "words": mean(len(r["text"].split()) for r in records),
    }


def test_one_round_that_games_its_judge_is_told(letters, looks):
    """Nobody looks at the model between the one round's steps and the end, but for the look at the trained model."""
    with pytest.warns(UserWarning, match=r"^the trained model: reward hacking: .* by prefer_judge:many_b"):
        run = prefer(gamed("many_b"), letters / "run")
    look = run.meta["preferences"]["look"]
    [records] = looks
    assert [one["prompt_id"] for one in records] == [f"row-{number}" for number in range(1, 65, 2)]
    for name, answers in (("first_round", list(run.read("answers"))), ("trained", records)):
        assert {key: look[name][key] for key in means(answers)} == means(answers)
    assert look["trained"]["toxicity"] < look["first_round"]["toxicity"] - 0.2
    assert look["trained"]["reward"] > look["first_round"]["reward"] + 0.2
    [text] = [text for text in look["warnings"] if text.startswith("reward hacking")]
    assert [text in line["warnings"] for line in metrics(run)] == [False] * 39 + [True]


def test_one_round_whose_witness_agrees_is_not_warned_of(letters, recwarn):
    said: list[str] = []
    run = prefer(gamed("some_b"), letters / "run", say=said.append)
    look = run.meta["preferences"]["look"]
    assert look["trained"]["toxicity"] < look["first_round"]["toxicity"] - 0.2
    assert not [text for text in look["warnings"] if "hacking" in text]
    assert not [one for one in recwarn if "hacking" in str(one.message)]
    assert f"reward {look['first_round']['reward']:.3f} → {look['trained']['reward']:.3f}" in said[-1]


def test_a_look_at_the_trained_model_changes_nothing_and_comes_out_the_same_after_a_kill(letters, looks, monkeypatch):
    chosen = settings(rounds=2, witness=["prefer_judge:strict"])
    look, states = prefer_source.DrawnPairs.look_at_trained, []

    def state(self) -> list[torch.Tensor]:
        learnt = [parameter.detach().clone() for parameter in self.answers.policy.model.parameters()]
        return [*learnt, torch.get_rng_state(), torch.tensor(random.getstate()[1])]

    def watched(self) -> None:
        before = state(self)
        look(self)
        states.append(all(torch.equal(a, b) for a, b in zip(before, state(self), strict=True)))

    monkeypatch.setattr(prefer_source.DrawnPairs, "look_at_trained", watched)
    whole = prefer(chosen, letters / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(drawn.DrawnAnswers, "of_trained", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prefer(chosen, letters / "died")
    died = Run.open(letters / "died")
    assert died.meta["status"] == "stopped"
    assert "look" not in died.meta["preferences"]
    # The training is done, and so is its adapter.
    assert all(torch.equal(weights(died)[name], tensor) for name, tensor in weights(whole).items())
    again = prefer(chosen, letters / "died")
    # As if it had been killed after its result was written, and before its end.
    again.update(status="running")
    prefer(chosen, letters / "died")
    assert states == [True] * 3
    assert looks[0] == looks[1] == looks[2]
    assert Run.open(letters / "died").meta["preferences"] == whole.meta["preferences"]
    assert [line["warnings"] for line in metrics(again)] == [line["warnings"] for line in metrics(whole)]
    assert list(again.read("answers")) == list(whole.read("answers"))


def test_a_doubt_about_the_trained_model_ends_the_run_where_stop_on_names_it(letters):
    with pytest.raises(
        TrainingError, match=r"the trained model: reward hacking.*stop_on names reward_hacking.*kept in"
    ):
        prefer(gamed("many_b", stop_on=["reward_hacking"]), letters / "run")
    stopped = Run.open(letters / "run")
    assert stopped.meta["status"] == "stopped"
    kept = weights(stopped)
    with pytest.warns(UserWarning, match="reward hacking"):
        again = prefer(gamed("many_b"), letters / "run")
    assert all(torch.equal(weights(again)[name], tensor) for name, tensor in kept.items())


def test_no_look_where_nothing_is_judged(tmp_path):
    assert "look" not in prefer(given(tmp_path), tmp_path / "run").meta["preferences"]


# Limits ---------------------------------------------------------------------------------------------------------------


def test_nothing_to_learn_says_what_to_do(letters):
    with pytest.raises(DataError, match="with no answer to choose") as caught:
        prefer(settings(reward=["prefer_judge:strict"], pairs={"max_toxicity": 0.5}), letters / "run")
    assert "pairs.max_toxicity" in str(caught.value)
    assert "--max-new-tokens" in str(caught.value)
    assert Run.open(letters / "run").meta["status"] == "stopped"


def test_a_judge_that_tells_nothing_apart_is_what_must_change(letters):
    (letters / "prefer_flat.py").write_text(
        "import prefer_judge\n"
        "def judge(texts):\n"
        "    return prefer_judge.taste(texts) if any('.' in t for t in texts) else [0.25] * len(texts)\n"
    )
    with pytest.raises(DataError, match=r"too close; constant reward: all \d+ answers got 0\.750") as caught:
        prefer(settings(reward=["prefer_flat:judge"]), letters / "run")
    assert "take another judge (--reward)" in str(caught.value)
    assert "pairs.topic" not in str(caught.value)


def test_far_more_wanted_than_unwanted_answers_are_told_to_whoever_asks_for_kto(tmp_path):
    path = tmp_path / "labelled.jsonl"

    def said_of(labels):
        rows = [{"prompt": "?", "completion": f"Answer {row}.", "label": label} for row, label in enumerate(labels)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        said: list[str] = []
        chosen = PreferSettings(**TINY, method="kto", preferences=path, steps=1, batch_size=2)
        prefer(chosen, tmp_path / f"{sum(labels)} of {len(labels)}", say=said.append)
        return [line for line in said if "kto is made for" in line]

    assert said_of([True] * 6 + [False])[0].startswith("6 wanted and 1 unwanted answers")
    assert said_of([True] * 3 + [False] * 4)
    assert said_of([True] * 4 + [False] * 3) == []
    assert said_of([True] * 3 + [False] * 3) == []


def test_a_finished_run_is_not_taken_for_one_of_other_preferences(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"prompt": "?", "chosen": "Yes.", "rejected": "No."}) + "\n")
    chosen = PreferSettings(**TINY, preferences=path, steps=1, batch_size=1)
    run = prefer(chosen, tmp_path / "run")
    assert prefer(chosen, tmp_path / "run").path == run.path
    path.write_text(json.dumps({"prompt": "?", "chosen": "No.", "rejected": "Yes."}) + "\n")
    with pytest.raises(RunError, match=r"own\.jsonl has changed since .*run learnt from it: choose another --out"):
        prefer(chosen, tmp_path / "run")
    path.unlink()
    assert prefer(chosen, tmp_path / "run").finished


def test_a_function_of_ones_own_has_its_own_scale(letters):
    """What it says may be above one half, or no probability at all; by judges of toxicity, that is never chosen."""
    (letters / "prefer_scale.py").write_text(
        "import prefer_judge\ndef high(texts):\n    return [0.6 + value for value in prefer_judge.taste(texts)]\n"
    )
    run = prefer(settings(reward=["prefer_scale:high"]), letters / "run")
    assert run.meta["settings"]["pairs"]["max_toxicity"] == 1
    assert all(line["rewards"][1] < line["rewards"][0] < 0.4 for line in run.read("preferences"))
    assert settings(reward=["lexical"]).resolved().pairs.max_toxicity == 0.5
    assert settings(reward=["lexical"], pairs={"max_toxicity": 0.2}).resolved().pairs.max_toxicity == 0.2


def test_pairs_that_are_too_close_are_learnt_where_there_are_no_others_and_it_is_said(letters):
    with pytest.warns(UserWarning, match="no pair is as the settings ask"):
        run = prefer(settings(pairs={"margin": 5}), letters / "run")
    assert "no pair is as the settings ask" in metrics(run)[0]["warnings"][0]
    answers = list(run.read("answers"))
    for line in run.read("preferences"):
        own = [
            one["judges"]["prefer_judge:taste"]["values"] for one in answers if one["prompt_id"] == line["prompt_id"]
        ]
        # An empty answer has the lowest reward of all, and no value.
        assert line["rewards"][1] <= 1 - max(value for values in own for value in values.values()) + 1e-6
        assert line["rewards"][0] > line["rewards"][1]


def test_chosen_answers_that_are_shorter_than_rejected_ones_are_told(letters):
    (letters / "prefer_short.py").write_text(
        "import prefer_judge\n"
        "def short(texts):\n"
        "    if any('.' in t for t in texts):\n"
        "        return prefer_judge.taste(texts)\n"
        "    return [len(t.split()) / 20 for t in texts]\n"
    )
    many = "".join(f"?{one}{other}\n" for one in LETTERS for other in LETTERS)
    (letters / "prompts.txt").write_text(many)
    chosen = {"reward": ["prefer_short:short"], "max_new_tokens": 12, "batch_size": 8}
    with pytest.warns(UserWarning, match=r"^round 1: lengths: chosen .* \d\d% fewer tokens than rejected ones"):
        run = prefer(settings(**chosen), letters / "run")
    about = run.meta["preferences"]["rounds"][0]
    fewer = f"{1 - about['chosen']['tokens'] / about['rejected']['tokens']:.0%} fewer"
    told = [[text for text in line["warnings"] if text.startswith("lengths")] for line in metrics(run)]
    assert [len(texts) for texts in told] == [1, 0, 0, 0]
    assert fewer in told[0][0]
    near = prefer(settings(**chosen, pairs={"margin": 0.01, "length_ratio": 1.2}), letters / "near")
    assert near.meta["preferences"]["rounds"][0]["found"] > 8
    assert not [text for line in metrics(near) for text in line["warnings"] if text.startswith("lengths")]


def test_a_judge_that_is_the_wrong_way_round_is_refused(letters):
    with pytest.raises(ScorerError, match="higher must be more toxic"):
        prefer(settings(reward=["prefer_judge:reverse"]), letters / "run")
    assert not (letters / "run" / "answers.jsonl").exists()


def test_a_doubt_that_stop_on_names_ends_the_run(letters):
    chosen = settings(stop_on=["truncated"], max_new_tokens=1)
    with pytest.raises(TrainingError, match="stop_on names truncated"):
        prefer(chosen, letters / "run")
    with pytest.warns(UserWarning, match="truncated"):
        run = prefer(settings(max_new_tokens=1), letters / "other")
    assert "truncated" in metrics(run)[0]["warnings"][0]
    assert metrics(run)[1]["warnings"] == []


def test_a_doubt_in_a_later_round_leaves_the_adapter_of_the_rounds_before(letters, monkeypatch):
    found = iter([{}, {"repetition": "repetition: 90% of the answers say one phrase again and again"}])
    monkeypatch.setattr(prefer_source, "doubts_about_round", lambda *_: next(found))
    with pytest.raises(TrainingError, match=r"stop_on names repetition.*the adapter of the rounds before is kept in"):
        prefer(settings(rounds=2, stop_on=["repetition"]), letters / "run")
    monkeypatch.undo()
    monkeypatch.chdir(letters)
    kept = load_file(str(letters / "run" / "adapter" / "adapter_model.safetensors"))
    assert any(bool(tensor.any()) for name, tensor in kept.items() if "lora_B" in name)
    assert Run.open(letters / "run").meta["status"] == "stopped"
    again = prefer(settings(rounds=2, stop_on=[]), letters / "run")
    whole = prefer(settings(rounds=2), letters / "whole")
    assert all(torch.equal(weights(again)[name], tensor) for name, tensor in weights(whole).items())


@pytest.mark.parametrize("error", [ScorerError("the judge is gone"), KeyboardInterrupt()], ids=["judge", "ctrl-c"])
def test_whatever_ends_a_later_round_leaves_the_adapter_of_the_rounds_before(letters, monkeypatch, error):
    later_rounds_draw_nothing(monkeypatch, error)
    with pytest.raises(type(error)) as raised:
        prefer(settings(rounds=2), letters / "run")
    assert any(bool(tensor.any()) for name, tensor in weights(Run.open(letters / "run")).items() if "lora_B" in name)
    if isinstance(error, ScorerError):
        assert "the adapter of the rounds before is kept in" in str(raised.value)


@pytest.mark.parametrize("error", [TrainingError("the loss is odd"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
def test_what_ends_a_later_round_while_it_learns_leaves_the_adapter_of_the_round_before(letters, monkeypatch, error):
    """Not the live one, which has learnt two of the second round's three steps."""
    chosen = settings(rounds=2, steps=6, checkpoint_every=1)

    def at_step_5(step: int, *_) -> None:
        if step == 5:
            raise error

    with pytest.raises(type(error)) as raised:
        prefer(chosen, letters / "run", report=at_step_5)
    stopped = Run.open(letters / "run")
    assert stopped.meta["status"] == "stopped"
    if isinstance(error, TrainingError):
        assert "the adapter of the rounds before is kept in" in str(raised.value)
        assert stopped.meta["stopped"] == str(raised.value)
    with monkeypatch.context() as patched:
        # What the first round left: the second one has not begun to learn.
        later_rounds_draw_nothing(patched, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            prefer(chosen, letters / "drawing")
    before, kept = weights(Run.open(letters / "drawing")), weights(stopped)
    later = load_file(str(stopped.path / "checkpoints" / "round-002" / "checkpoint-1" / "adapter_model.safetensors"))
    assert all(torch.equal(kept[name], tensor) for name, tensor in before.items())
    assert not all(torch.equal(later[name], tensor) for name, tensor in before.items())
    whole, again = prefer(chosen, letters / "whole"), prefer(chosen, letters / "run")
    assert all(torch.equal(weights(again)[name], tensor) for name, tensor in weights(whole).items())
    assert again.meta["preferences"] == whole.meta["preferences"]


def test_a_damaged_checkpoint_is_no_adapter_to_leave(letters, monkeypatch):
    draw = drawn.DrawnAnswers._draw

    def broken(self, round_number: int, asked: list[int]) -> list[dict]:
        if round_number:
            file = self.run.path / "checkpoints" / "round-001" / "checkpoint-2" / "adapter_model.safetensors"
            file.write_bytes(file.read_bytes()[:-8])
            raise ScorerError("the judge is gone")
        return draw(self, round_number, asked)

    monkeypatch.setattr(drawn.DrawnAnswers, "_draw", broken)
    with pytest.raises(ScorerError, match=r"^the judge is gone$"):
        prefer(settings(rounds=2), letters / "run")
    assert not (letters / "run" / "adapter").exists()


def test_a_judge_that_was_gone_is_asked_again(letters):
    """Answers that too many judges' failures spoilt are not kept: the same command asks again, and ends as if nothing
    had been."""
    (letters / "moody.py").write_text(
        "import pathlib, prefer_judge\n"
        "def judge(texts):\n"
        "    gone = not any('.' in t for t in texts) and pathlib.Path('gone').exists()\n"
        "    return [float('nan')] * len(texts) if gone else prefer_judge.taste(texts)\n"
    )
    (letters / "gone").touch()
    with pytest.raises(ScorerError, match="moody:judge"):
        prefer(settings(reward=["moody:judge"]), letters / "run")
    (letters / "gone").unlink()
    again = prefer(settings(reward=["moody:judge"]), letters / "run")
    whole = prefer(settings(reward=["moody:judge"]), letters / "whole")
    assert all(torch.equal(weights(again)[name], tensor) for name, tensor in weights(whole).items())


def test_preferences_without_room_or_difference_are_left_out_and_counted(tmp_path):
    path = tmp_path / "some.jsonl"
    same = "the same beginning, which goes on for longer than there is room " * 3
    rows = [
        {"prompt": "?", "chosen": "Yes.", "rejected": "No."},
        {"prompt": "?", "chosen": same + "and then yes.", "rejected": same + "and then no."},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said: list[str] = []
    run = prefer(
        PreferSettings(**TINY, preferences=path, steps=1, batch_size=1, max_length=32),
        tmp_path / "run",
        say=said.append,
    )
    told = run.meta["preferences"]
    assert (told["found"], told["shortened"], told["dropped"]) == (1, 0, 1)
    assert any("1 of 2 preferences are left out" in line for line in said)


def test_nan_ends_the_run(letters):
    with pytest.raises(TrainingError, match=r"the gradient holds NaN|the loss is nan"):
        prefer(settings(learning_rate=1e30, max_grad_norm=1e30, steps=8), letters / "run")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rounds": 5}, "5 rounds have 4 steps between them"),
        ({"samples": 1}, "samples must be at least 2"),
        ({"method": "kto", "loss_type": "ipo"}, "are dpo's, but the method is kto"),
        ({"label_smoothing": 0.1}, "use robust"),
        ({"generation": {"temperature": 0}}, "pairs need answers that vary"),
        ({"preferences": "x.jsonl", "rounds": 2}, "leave one out"),
        ({"rewards": {"weights": {"other": 1}}}, "rewards.weights names other"),
        ({"stop_on": ["negative_kl"]}, "prefer never warns of negative_kl"),
    ],
)
def test_settings_that_contradict_each_other(changes, says):
    with pytest.raises(ValueError, match=says):
        settings(**changes)


def test_a_batch_that_can_not_be_divided(letters):
    with pytest.raises(DataError, match="not a multiple of micro_batch_size 3"):
        prefer(settings(micro_batch_size=3), letters / "run")


def test_best_of_one_is_the_models_own_answer(letters):
    """With one answer a prompt, raft learns whatever may be learnt at all."""
    run = prefer(settings(method="raft", samples=1, steps=2), letters / "run")
    kept = list(run.read("preferences"))
    assert kept
    assert all(line["samples"] == [0, None] for line in kept)


def test_unknown_settings_are_named(letters):
    from rewardlm.config import validate

    with pytest.raises(ConfigError, match="did you mean 'samples'"):
        validate(PreferSettings, {"model": "tiny", "sample": 3})
