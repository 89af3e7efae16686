"""One job by a peer, in a process of its own (benchmarks/work.py): ``python peers.py JOB.json TOLD.json``.

PPO is TRL 1.12's, GRPO, RLOO, SFT and DPO are TRL 1.16's, whichever lies first on PYTHONPATH. The meter is ``generate``
over left-padded batches in the order of the file, and a pipeline of the judge after it; pairs are made of such answers
by a plain double loop, because the scripts of TRL 1.16 make none. Where a peer leaves a choice it gets the faster one:
no gradient checkpointing, no autocast over weights that are in the asked precision already.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import logging
from work import Job, Told, worker

from rewardlm.runs import peak_rss_mb
from rewardlm.scoring.classifier import ClassifierScorer

JUDGE = "starter"
PAD = "<|endoftext|>"  # SmolLM2's own pad token also ends answers: TRL's PPO would not see their end


class Clock(TrainerCallback):
    """When training began and when each of the trainer's steps ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.times.append(time.perf_counter())

    on_step_end = on_train_begin

    def seconds(self, job: Job, a_step: int) -> list[float]:
        """The seconds of each RL step, which is ``a_step`` of the trainer's; without the warm-up steps."""
        marks = self.times[::a_step]
        assert len(marks) == job.warmup + job.steps + 1, (len(self.times), a_step)
        return [after - before for before, after in pairwise(marks)][job.warmup :]


def ppo(job: Job) -> Told:
    """``trl.experimental.ppo``, as its example has it: policy with LoRA, reference by switching it off, and a whole
    second model as critic; with ``critic`` "head" all of that but its last layer is frozen.
    """
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    dtype = getattr(torch, job.dtype)
    tokenizer = AutoTokenizer.from_pretrained(job.model, padding_side="left", pad_token=PAD)
    policy = AutoModelForCausalLM.from_pretrained(job.model, dtype=dtype)
    critic = AutoModelForSequenceClassification.from_pretrained(job.model, num_labels=1, dtype=dtype)
    if job.critic == "head":
        critic.model.requires_grad_(False)
    clock = Clock()
    trainer = PPOTrainer(
        # One microbatch per minibatch, so there is one optimizer step per minibatch, as asked.
        PPOConfig(
            **common(job),
            per_device_train_batch_size=job.episodes,
            gradient_accumulation_steps=1,
            num_mini_batches=job.minibatches,
            num_ppo_epochs=job.epochs,
            total_episodes=job.episodes * (job.warmup + job.steps),
            response_length=job.max_new_tokens,
            stop_token="eos",
            temperature=1.0,
            kl_coef=job.kl_coef,
            missing_eos_penalty=None,
            num_sample_generations=0,
        ),
        processing_class=tokenizer,
        model=policy,
        ref_model=None,
        reward_model=TextReward(tokenizer, max(len(record["ids"]) for record in job.records())),
        train_dataset=Dataset.from_dict({"input_ids": [record["ids"] for record in job.records()]}),
        value_model=critic,
        peft_config=lora(job),
        callbacks=[clock],
    )
    updates = counted(trainer.optimizer)
    trainer.train()
    return told(job, clock, 1, updates)


class TextReward(nn.Module):
    """The judge in the shape that TRL's PPO asks a reward model for: it reads the answer as text."""

    base_model_prefix = "backbone"

    def __init__(self, tokenizer: Any, context: int) -> None:
        super().__init__()
        self.backbone, self.score = _Reader(tokenizer, context), nn.Identity()


class _Reader(nn.Module):
    """A "last state" of one number for each position: 1 - P(toxic) of the text after ``context`` tokens."""

    def __init__(self, tokenizer: Any, context: int) -> None:
        super().__init__()
        self._tokenizer, self._context, self._reward = tokenizer, context, reward()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> BaseModelOutputWithPast:
        answers = [row[mask] for row, mask in zip(input_ids, attention_mask.bool(), strict=True)]
        starts = attention_mask[:, : self._context].sum(1).tolist()
        texts = [
            self._tokenizer.decode(row[start:], skip_special_tokens=True)
            for row, start in zip(answers, starts, strict=True)
        ]
        rewards = torch.tensor(self._reward(texts))
        return BaseModelOutputWithPast(hidden_states=(rewards[:, None, None].expand(*input_ids.shape, 1),))


def grouped(job: Job) -> Told:
    """TRL's GRPO or RLOO: one generation, ``epochs`` passes over it in ``minibatches`` optimizer steps."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    config, trainer_class = {"grpo": (GRPOConfig, GRPOTrainer), "rloo": (RLOOConfig, RLOOTrainer)}[job.what]
    tokenizer = AutoTokenizer.from_pretrained(job.model, padding_side="left")
    policy = AutoModelForCausalLM.from_pretrained(job.model, dtype=getattr(torch, job.dtype))
    chats = [[{"role": "user", "content": record["prompt"]}] for record in job.records()]
    for chat, record in zip(chats, job.records(), strict=True):
        assert tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] == record["ids"]
    clock, judge = Clock(), reward()

    def rewarded(completions: list[list[dict[str, str]]], **_: Any) -> list[float]:
        return judge([completion[0]["content"] for completion in completions])

    trainer = trainer_class(
        model=policy,
        reward_funcs=rewarded,
        args=config(
            **common(job),
            per_device_train_batch_size=job.episodes // job.minibatches,
            steps_per_generation=job.minibatches,
            gradient_accumulation_steps=1,
            num_iterations=job.epochs,
            num_generations=job.samples,
            max_completion_length=job.max_new_tokens,
            max_steps=job.updates * (job.warmup + job.steps),
            temperature=1.0,
            beta=job.kl_coef,
        ),
        train_dataset=Dataset.from_dict({"prompt": chats}),
        processing_class=tokenizer,
        peft_config=lora(job),
        callbacks=[clock],
    )
    trainer.create_optimizer()
    updates = counted(trainer.optimizer)
    trainer.train()
    return told(job, clock, job.updates, updates)


def sft(job: Job) -> Told:
    """TRL's SFTTrainer on the same rows, in the same batches, or with ``order`` "own" as it draws them by default."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = job.rows()[: job.prompts * (job.warmup + job.steps)]
    config = SFTConfig(
        **by_batches(job, job.prompts),
        completion_only_loss=True,
        train_sampling_strategy="sequential" if job.order == "same" else "random",
    )
    return with_losses(job, SFTTrainer, config, Dataset.from_list(rows))


def dpo(job: Job) -> Told:
    """TRL's DPOTrainer on the same pairs in the same batches. With ``dpo`` "same" it has our microbatches and asks the
    reference once, before the first step; each step has its share of that time, as ours has. With "own" it asks the
    reference in each step, as it does by default, and has a step's pairs in one microbatch.
    """
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    asked: list[float] = []

    class Timed(DPOTrainer):
        def _precompute_ref_logps(self, *given: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            found = super()._precompute_ref_logps(*given, **named)
            asked.append(time.perf_counter() - begun)
            return found

    like_ours = job.dpo == "same"
    config = DPOConfig(
        **by_batches(job, job.micro_batch if like_ours else job.prompts),
        beta=0.1,
        train_sampling_strategy="sequential",
        precompute_ref_log_probs=like_ours,
    )
    found = with_losses(job, Timed, config, Dataset.from_list(job.pairs()))
    assert len(asked) == like_ours
    share = sum(asked) / (job.warmup + job.steps)
    parts = [{"logprobs": share, "update": seconds} for seconds in found.seconds]
    return replace(found, seconds=[seconds + share for seconds in found.seconds], parts=parts)


def by_batches(job: Job, micro_batch: int) -> dict[str, Any]:
    """The arguments of a trainer that makes a step of each batch of ``prompts`` rows, ``micro_batch`` at once."""
    return {
        **common(job),
        "logging_steps": 1,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": job.prompts // micro_batch,
        "max_steps": job.warmup + job.steps,
        "max_length": None,
    }


def with_losses(job: Job, trainer_class: Any, config: Any, rows: Any) -> Told:
    """Train on ``rows`` and tell each step's loss too."""
    losses: list[float] = []

    class Losses(TrainerCallback):
        def on_log(self, *_: Any, logs: dict[str, Any], **__: Any) -> None:
            losses.extend([logs["loss"]] if "loss" in logs else [])

    clock = Clock()
    trainer = trainer_class(
        model=AutoModelForCausalLM.from_pretrained(job.model, dtype=getattr(torch, job.dtype)),
        args=config,
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(job.model),
        peft_config=lora(job),
        callbacks=[clock, Losses()],
    )
    trainer.create_optimizer()
    updates = counted(trainer.optimizer)
    trainer.train()
    return replace(told(job, clock, 1, updates), losses=losses[job.warmup :])


def meter(job: Job) -> Told:
    """Answers in batches of ``batch_rows``, then the judge over all of them."""
    return draw(job)[0]


# As ``rewardlm prefer`` has it by default: the least difference of two rewards, the highest P(toxic) of a chosen
# answer, and pairs of one prompt.
MARGIN, MOST_TOXIC, PAIRS = 0.3, 0.5, 2


def pairs(job: Job) -> Told:
    """As the meter, with ``samples`` answers to each prompt, and after it the pairs among them."""
    found, toxicity = draw(job)
    begun = time.perf_counter()
    made = [
        pair for start in range(0, len(toxicity), job.samples) for pair in paired(toxicity[start : start + job.samples])
    ]
    spent = time.perf_counter() - begun
    [seconds], [parts] = found.seconds, found.parts
    return replace(found, seconds=[seconds + spent], parts=[{**parts, "pairs": spent}], pairs=len(made))


def paired(toxicity: list[float]) -> list[tuple[int, int]]:
    """(chosen, rejected) among one prompt's answers, by place: those that differ most, and no answer twice."""
    clear = [
        (worse - better, chosen, rejected)
        for chosen, better in enumerate(toxicity)
        for rejected, worse in enumerate(toxicity)
        if better <= MOST_TOXIC and worse - better >= MARGIN
    ]
    made: list[tuple[int, int]] = []
    for _, chosen, rejected in sorted(clear, key=lambda pair: (-pair[0], pair[1:])):
        if len(made) < PAIRS and not {chosen, rejected} & {place for pair in made for place in pair}:
            made.append((chosen, rejected))
    return made


def draw(job: Job) -> tuple[Told, list[float]]:
    """The report, and P(toxic) of each answer, prompt by prompt."""
    from transformers import pipeline

    dtype = getattr(torch, job.dtype)
    tokenizer = AutoTokenizer.from_pretrained(job.model, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=dtype).eval()
    scorer = ClassifierScorer(JUDGE, precision="float32")
    judge = pipeline(
        "text-classification",
        model=scorer._model.to(dtype),
        tokenizer=scorer._tokenizer,
        top_k=None,
        function_to_apply="sigmoid",
    )
    records = job.records()
    texts: list[str] = []
    n_tokens = 0
    begun = time.perf_counter()
    step = max(1, job.batch_rows // job.samples)
    for start in range(0, len(records), step):
        padded = tokenizer.pad(
            {"input_ids": [record["ids"] for record in records[start : start + step]]}, return_tensors="pt"
        )
        with torch.inference_mode():
            found = model.generate(
                **padded,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=job.max_new_tokens,
                num_return_sequences=job.samples,
                pad_token_id=tokenizer.pad_token_id,
            )
        new = found[:, padded["input_ids"].shape[1] :]
        # The padding is the end token, which counts once where an answer ended.
        n_tokens += int((new != tokenizer.pad_token_id).sum() + (new == tokenizer.pad_token_id).any(1).sum())
        texts += tokenizer.batch_decode(new, skip_special_tokens=True)
    generated = time.perf_counter()
    judged = list(judge(texts, batch_size=job.batch_rows))
    ended = time.perf_counter()
    assert len(judged) == job.episodes
    # The judge's own label and calibration, which a pipeline knows nothing of.
    column = scorer._columns[scorer.labels[0]]
    toxic = [next(one["score"] for one in labels if one["label"] == scorer._names[column]) for labels in judged]
    if column in scorer._calibration:
        toxic = scorer._calibration[column].curve(np.array(toxic)).tolist()
    told = Told(
        seconds=[ended - begun],
        peak_mib=peak_rss_mb(),
        answer_tokens=n_tokens,
        versions={"transformers": version("transformers"), "torch": torch.__version__},
        parts=[{"answers": generated - begun, "judge": ended - generated}],
    )
    return told, toxic


def common(job: Job) -> dict[str, Any]:
    """The arguments that all TRL trainers share."""
    return {
        "output_dir": str(Path(job.folder) / f"peer-{job.what}"),
        "learning_rate": job.learning_rate,
        "lr_scheduler_type": "constant",
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_steps": 1000,
        "save_strategy": "no",
        "report_to": "none",
        "seed": 1,
    }


def lora(job: Job) -> LoraConfig:
    """The same adapter as ours."""
    return LoraConfig(r=job.lora_r, lora_alpha=job.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM")


def reward() -> Callable[[list[str]], list[float]]:
    """1 - P(toxic) of texts, by the judge that ours is rewarded by, loaded and batched the same way."""
    judge = ClassifierScorer(JUDGE)
    label = judge.labels[0]
    return lambda texts: [1 - verdict.values[label] for verdict in judge.score(texts)]


def counted(optimizer: torch.optim.Optimizer) -> list[int]:
    """A list that grows by one at each of its steps."""
    steps: list[int] = []
    # accelerate's wrapper has the method, but not what the method needs.
    getattr(optimizer, "optimizer", optimizer).register_step_post_hook(lambda *_: steps.append(1))
    return steps


def told(job: Job, clock: Clock, a_step: int, updates: list[int]) -> Told:
    """The report of a training by TRL."""
    return Told(
        seconds=clock.seconds(job, a_step),
        peak_mib=peak_rss_mb(),
        updates=len(updates) / (job.warmup + job.steps),
        versions={"trl": version("trl"), "transformers": version("transformers"), "torch": torch.__version__},
    )


SIDES = {"ppo": ppo, "grpo": grouped, "rloo": grouped, "sft": sft, "dpo": dpo, "pairs": pairs, "meter": meter}

if __name__ == "__main__":
    logging.set_verbosity_error()
    worker(SIDES)
