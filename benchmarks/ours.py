"""One job by rewardlm, in a process of its own (benchmarks/work.py): ``python ours.py JOB.json TOLD.json``."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from work import Job, Told, finetuning, worker

import rewardlm.training.prefer_rows as prefer_rows
import rewardlm.training.prefer_source as prefer_source
import rewardlm.training.rlaf as rlaf
from rewardlm.config import (
    GenerationSettings,
    KlSettings,
    LoraSettings,
    MeasureSettings,
    ModelSettings,
    PairSettings,
    PreferSettings,
    RetainSettings,
    RewardSettings,
    RlafSettings,
    TermSettings,
)
from rewardlm.measuring.meter import measure
from rewardlm.models.load import Policy, load_policy
from rewardlm.runs import Run, peak_rss_mb
from rewardlm.scoring.classifier import ClassifierScorer
from rewardlm.training.prefer import prefer
from rewardlm.training.prefer_rows import laid_out
from rewardlm.training.rollouts import Draft
from rewardlm.training.sft import finetune

JUDGE = "starter"
# The kind that an operator's time counts as, by a part of its name; the first match counts.
KINDS = {
    "products": ("addmm", "::mm", "bmm", "linear", "matmul", "baddbmm", "gemm"),
    "attention": ("attention", "flash"),
    "softmax and log-sum-exp": ("softmax", "logsumexp", "::exp"),
    "drawing": ("cumsum", "searchsorted", "multinomial", "sort", "argmax"),
    "copies": ("copy", "cat", "index", "gather", "clone", "contiguous", "to_copy", "repeat", "fill", "zero", "stack"),
}


def asks(job: Job) -> dict[str, Any]:
    """The settings of a training that lets the model answer and has one judge."""
    return {
        "model": job.model,
        "dtype": job.dtype,
        "device": "cpu",
        "prompts": str(job.prompts_file),
        "reward": [JUDGE],
        "witness": ["none"],
        "samples": job.samples,
        "max_new_tokens": job.max_new_tokens,
        "rewards": judge_alone(),
        "lora": LoraSettings(r=job.lora_r, alpha=job.lora_alpha),
    }


def reinforce(job: Job) -> Told:
    """RL steps through ``rewardlm.training.rlaf.train``; a step's seconds are those in its metrics.jsonl."""
    settings = RlafSettings(
        **asks(job),
        algorithm=job.what,
        steps=job.warmup + job.steps,
        batch_size=job.episodes,
        ppo_epochs=job.epochs,
        minibatches=job.minibatches,
        learning_rate=job.learning_rate,
        kl=KlSettings(coef=job.kl_coef, penalty="k3" if job.what == "grpo" else "k1"),
        generation=GenerationSettings(),
    )
    out = fresh(job, "rlaf")
    drafts: list[Draft] = []
    policies: list[Policy] = []
    sample = rlaf.sample

    def noted(policy: Policy, *args: Any, **kwargs: Any) -> Draft:
        policies[:] = [policy]
        drafts.append(sample(policy, *args, **kwargs))
        return drafts[-1]

    rlaf.sample = noted
    look = Look() if job.profile else None

    run = rlaf.train(settings, out, report=at_the_last_step(look))
    lines = list(run.read("metrics"))[job.warmup :]
    peak = peak_rss_mb()
    judge = ClassifierScorer(JUDGE)
    return Told(
        seconds=[line["seconds"] for line in lines],
        peak_mib=peak,
        updates=lines[-1]["updates"],
        answer_tokens=sum(len(answer.tokens) for draft in drafts[job.warmup :] for answer in draft.sampled)
        / len(lines),
        versions={"torch": torch.__version__},
        parts=[line["phase_seconds"] for line in lines],
        lengths=[
            {
                "prompts": [list(prompt) for prompt in draft.prompt_ids],
                "answers": [len(answer.tokens) for answer in draft.sampled],
                "judged": judged_tokens(judge, draft.texts),
            }
            for draft in drafts[job.warmup :]
        ],
        weights={"policy": decoder_of(policies[0]), "judge": judge_of(judge)},
        profile=look.by_kind() if look is not None else [],
    )


def judge_alone() -> RewardSettings:
    """The peer's reward: the judge's word and nothing else."""
    return RewardSettings(transform="probability", terms=TermSettings(refusal=0, similarity=0, counter_narrative=0))


def at_the_last_step(look: Look | None) -> Callable[[int, int, dict[str, Any]], None]:
    """A training's ``report`` that profiles the whole last step, and no other, with ``look``."""

    def report(step: int, steps: int, metrics: dict[str, Any]) -> None:
        if look is not None and step == steps - 1:
            look.begin()
        if look is not None and step == steps:
            look.end()

    return report


def tune(job: Job) -> Told:
    """Fine-tuning steps through ``rewardlm.training.sft.finetune``, on the dialogues of prepare.py's rows."""
    settings = finetuning(job.model, job.prompts).model_copy(
        update={
            "dtype": job.dtype,
            "max_steps": job.warmup + job.steps,
            "learning_rate": job.learning_rate,
            "lora": LoraSettings(r=job.lora_r, alpha=job.lora_alpha),
        }
    )
    look = Look() if job.profile else None

    run = finetune(settings, fresh(job, "finetune"), report=at_the_last_step(look))
    peak = peak_rss_mb()
    every = list(run.read("metrics"))
    lines, rows = every[job.warmup :], job.rows()
    lengths = []
    for start in range(job.warmup * job.prompts, (job.warmup + job.steps) * job.prompts, job.prompts):
        batch = rows[start : start + job.prompts]
        answers = [sum(row["completion_mask"]) for row in batch]
        prompts = [row["input_ids"][:-n] for row, n in zip(batch, answers, strict=True)]
        lengths.append({"prompts": prompts, "answers": answers})
    return Told(
        seconds=[line["seconds"] for line in lines],
        peak_mib=peak,
        updates=len(every) / (job.warmup + job.steps),
        answer_tokens=sum(sum(step["answers"]) for step in lengths) / len(lengths),
        versions={"torch": torch.__version__},
        losses=[line["loss"] for line in lines],
        lengths=lengths,
        weights={"policy": decoder_of(policy_of(job))},
        profile=look.by_kind() if look is not None else [],
    )


def prefer_pairs(job: Job) -> Told:
    """Steps of DPO through ``rewardlm.training.prefer.prefer``, on the pairs of prepare.py. The reference is asked
    once, before the first step; each step has its share of that time.
    """
    settings = PreferSettings(
        model=job.model,
        dtype=job.dtype,
        device="cpu",
        preferences=job.pairs_file,
        # As the peer has it.
        beta=0.1,
        sft_weight=0.0,
        retain=RetainSettings(coef=0.0),
        steps=job.warmup + job.steps,
        batch_size=job.prompts,
        learning_rate=job.learning_rate,
        lora=LoraSettings(r=job.lora_r, alpha=job.lora_alpha),
        checkpoint_every=10_000,
    )
    asked: list[float] = []
    answers: list[tuple[list[int], int]] = []
    logps = prefer_rows.reference_logps

    def noted(policy: Policy, settings: PreferSettings, rows: Any) -> list[float]:
        begun = time.perf_counter()
        found = logps(policy, settings, rows)
        asked.append(time.perf_counter() - begun)
        answers.extend((list(prompt), len(answer)) for prompt, answer in rows)
        return found

    prefer_rows.reference_logps = noted
    look = Look() if job.profile else None
    run = prefer(settings, fresh(job, "prefer"), report=at_the_last_step(look))
    peak = peak_rss_mb()
    lines = list(run.read("metrics"))[job.warmup :]
    # The file has pairs for eight steps, all of which were asked about.
    share = asked[0] * job.prompts / (len(answers) / 2)
    order = laid_out(len(answers) // 2, (job.warmup + job.steps) * job.prompts, 0, 0)
    lengths = []
    for step in range(job.warmup, job.warmup + job.steps):
        places = order[step * job.prompts : (step + 1) * job.prompts]
        rows = [answers[2 * place + side] for place in places for side in (0, 1)]
        lengths.append({"prompts": [prompt for prompt, _ in rows], "answers": [n for _, n in rows]})
    return Told(
        seconds=[line["seconds"] + share for line in lines],
        peak_mib=peak,
        updates=1,
        answer_tokens=sum(sum(step["answers"]) for step in lengths) / len(lengths),
        versions={"torch": torch.__version__},
        losses=[line["loss"] for line in lines],
        parts=[{"logprobs": share, "update": line["seconds"]} for line in lines],
        lengths=lengths,
        weights={"policy": decoder_of(policy_of(job))},
        profile=look.by_kind() if look is not None else [],
    )


class Made(Exception):
    """The pairs are made: the command ends here, because the job does."""


def make_pairs(job: Job) -> Told:
    """``rewardlm prefer`` from its first question to its pairs, without what the peer doesn't do: answers drawn, judged
    and paired. It is ended before the reference is asked.
    """
    settings = PreferSettings(
        **asks(job),
        # More than there are pairs, so that all prompts are asked.
        steps=job.episodes,
        pairs=PairSettings(topic=0, topic_gap=None, length_ratio=None, ended=False),
        retain=RetainSettings(coef=0.0),
    )
    examples = prefer_source.DrawnPairs.examples
    clocks: list[float] = []
    look = Look() if job.profile else None

    def noted(self: prefer_source.DrawnPairs, round_number: int) -> Any:
        if look is not None:
            look.begin()
        clocks.append(time.perf_counter())
        examples(self, round_number)
        clocks.append(time.perf_counter())
        if look is not None:
            look.end()
        raise Made

    prefer_source.DrawnPairs.examples = noted
    out = fresh(job, "pairs")
    with contextlib.suppress(Made):
        prefer(settings, out)
    peak = peak_rss_mb()
    run = Run.open(out)
    ids = {record["id"]: record["ids"] for record in job.records()}
    answers = list(run.read("answers"))
    judge = ClassifierScorer(JUDGE)
    return Told(
        seconds=[clocks[1] - clocks[0]],
        peak_mib=peak,
        answer_tokens=sum(len(answer["tokens"]) for answer in answers),
        versions={"torch": torch.__version__},
        pairs=run.meta["preferences"]["rounds"][0]["found"],
        lengths=[
            {
                "prompts": [ids[answer["prompt_id"]] for answer in answers],
                "answers": [len(answer["tokens"]) for answer in answers],
                "judged": judged_tokens(judge, [answer["text"] for answer in answers]),
            }
        ],
        weights={"policy": decoder_of(policy_of(job)), "judge": judge_of(judge)},
        profile=look.by_kind() if look is not None else [],
    )


def answer(job: Job) -> Told:
    """``rewardlm measure`` without what the peer doesn't do: from the first question to the last score."""
    settings = MeasureSettings(
        model=job.model,
        dtype=job.dtype,
        device="cpu",
        prompts=str(job.prompts_file),
        scorer=[JUDGE],
        label="ours",
        samples=job.samples,
        max_new_tokens=job.max_new_tokens,
        similarity=False,
        perplexity=False,
        counter_narrative=None,
    )
    clocks: list[float] = []
    look = Look() if job.profile else None

    def report(done: int, total: int, what: str) -> None:
        if look is not None and not clocks:
            look.begin()
        clocks.append(time.perf_counter())
        if look is not None and done == total:
            look.end()

    run = measure(settings, fresh(job, "measure"), report=report)
    peak = peak_rss_mb()
    ids = {record["id"]: record["ids"] for record in job.records()}
    generations = list(run.each_generation())
    judge = ClassifierScorer(JUDGE)
    return Told(
        seconds=[clocks[-1] - clocks[0]],
        peak_mib=peak,
        answer_tokens=sum(generation.n_tokens for generation in generations),
        versions={"torch": torch.__version__},
        lengths=[
            {
                "prompts": [ids[generation.prompt_id] for generation in generations],
                "answers": [generation.n_tokens for generation in generations],
                "judged": judged_tokens(judge, [generation.text for generation in generations]),
            }
        ],
        weights={"policy": decoder_of(policy_of(job)), "judge": judge_of(judge)},
        profile=look.by_kind() if look is not None else [],
    )


def fresh(job: Job, name: str) -> Path:
    """A folder for the run, empty."""
    out = Path(job.folder) / f"{name}-{job.what}"
    shutil.rmtree(out, ignore_errors=True)
    return out


def policy_of(job: Job) -> Policy:
    """The model that answered, loaded once more: the meter keeps none."""
    return load_policy(ModelSettings(model=job.model, dtype=job.dtype, device="cpu"))


def decoder_of(policy: Policy) -> dict[str, int]:
    """What benchmarks/limits.py wants to know of the base model, adapters not counted."""
    model, config = policy.causal_lm, policy.causal_lm.config
    head = model.get_output_embeddings().weight
    embedded = {id(head), id(model.get_input_embeddings().weight)}
    base = [parameter for name, parameter in model.named_parameters() if "lora_" not in name]
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {
        "body": sum(parameter.numel() for parameter in base if id(parameter) not in embedded),
        "head": head.numel(),
        "layers": config.num_hidden_layers,
        "kv_width": kv_heads * size,
        "width": policy.dtype.itemsize,
    }


def judge_of(judge: ClassifierScorer) -> dict[str, Any]:
    """Weights of the encoder's layers, and the precision that most of them multiply in."""
    layers = judge._model.base_model.encoder.modules()
    weights = sum(module.weight.numel() for module in layers if isinstance(module, nn.Linear))
    return {"weights": weights, "dtype": judge.precision}


def judged_tokens(judge: ClassifierScorer, texts: list[str]) -> int:
    """Word pieces of the texts, equal ones once."""
    return sum(len(row["input_ids"]) for row in judge._encode(sorted(set(texts))))


class Look:
    """A profiler and the wall clock, which its times are in even if the job counts CPU seconds."""

    def __init__(self) -> None:
        self._profiler = profile(activities=[ProfilerActivity.CPU])
        self._seconds = 0.0

    def begin(self) -> None:
        self._profiler.start()
        self._seconds = -time.monotonic()

    def end(self) -> None:
        self._seconds += time.monotonic()
        self._profiler.stop()

    def by_kind(self) -> list[dict[str, Any]]:
        """Seconds and share that each kind of operator took itself; the rest is Python and what lies between."""
        spent = dict.fromkeys([*KINDS, "other operators"], 0.0)
        for event in self._profiler.key_averages():
            kind = next(
                (kind for kind, parts in KINDS.items() if any(p in event.key for p in parts)), "other operators"
            )
            spent[kind] += event.self_cpu_time_total / 1e6
        spent["between operators"] = self._seconds - sum(spent.values())
        return [{"kind": kind, "seconds": part, "share": part / self._seconds} for kind, part in spent.items()]


SIDES: dict[str, Callable[[Job], Told]] = {
    "ppo": reinforce,
    "grpo": reinforce,
    "rloo": reinforce,
    "sft": tune,
    "dpo": prefer_pairs,
    "pairs": make_pairs,
    "meter": answer,
}

if __name__ == "__main__":
    worker(SIDES)
