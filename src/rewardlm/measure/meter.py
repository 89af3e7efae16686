"""The meter: prompts in, answers and scores out, written down as they come.

A batch of answers is appended before it is scored and its scores after, so a killed measurement does at most one
batch again and scores nothing twice.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

from rewardlm.config import MeasureSettings
from rewardlm.data.chat import truncate_history
from rewardlm.data.prompts import load_prompts
from rewardlm.errors import ConfigError, DataError, RunError
from rewardlm.measure.scoring import Report, answered, describe_scorer, score_generations
from rewardlm.measure.similarity import load_embedder, similarities
from rewardlm.models.generate import Request, generate, stream_seed
from rewardlm.models.load import Policy, load_policy, resolve_device
from rewardlm.models.logprobs import check_head, score_rows
from rewardlm.models.lora import load_adapter, merged, reference
from rewardlm.runs import Run, prompts_hash, rewards_of
from rewardlm.scoring.pairs import PairJudge, load_pair_judge
from rewardlm.scoring.scorer import FailureLimit, Scorer, load_scorer, score_texts
from rewardlm.types import Generation, Prompt

# Not part of what is measured: a run may be resumed with other values of these.
FREE_SETTINGS = ("device", "batch_tokens", "max_failed_share")
ADDED_SETTINGS = ("counter_narrative",)
# Answers are sampled, scored and written in windows of this many requests; within one they are sorted by length.
_WINDOW = 256


def measure(settings: MeasureSettings, out: Path, *, report: Report | None = None) -> Run:
    """Sample and score answers into the run ``out``; a finished run is returned as it is, a killed one goes on.

    ``report(done, total, what)`` is called as answers come. Raises RewardLMError where prompts, model or judges can't
    be used, and ScorerError once more than ``max_failed_share`` of the answers can't be scored.
    """
    label = settings.label or _default_label(settings)
    run = Run.start(
        out,
        kind="measure",
        label=label,
        settings=settings.model_dump(mode="json"),
        free=FREE_SETTINGS,
        added=ADDED_SETTINGS,
    )
    if run.finished:
        _check_weights(run, "adapter_hash", _adapter_hash(settings))
        return run
    device = str(resolve_device(settings.device))
    scorers = [load_scorer(name, device=device) for name in settings.scorer]
    pair_judge = None
    if settings.counter_narrative is not None:
        pair_judge = load_pair_judge(settings.counter_narrative, device=device)
    prompts = _prompts(run, settings, scorers, device)
    policy = load_policy(settings)
    check_head(policy.causal_lm)
    rewards: list[str] = []
    # Answers of two models must not end up in one table, whatever the folder was called both times.
    _check_weights(run, "model_hash", policy.weights_hash)
    _check_weights(run, "adapter_hash", _adapter_hash(settings))
    if settings.adapter is not None:
        load_adapter(policy, settings.adapter)
        rewards = rewards_of(settings.adapter)
    run.update(
        **policy.describe(),
        adapter_hash=_adapter_hash(settings),
        rewards=rewards,
        scorers=[describe_scorer(scorer, settings.max_failed_share) for scorer in scorers],
        samples=settings.samples,
        pair_judge=pair_judge and pair_judge.describe(),
    )
    with merged(policy):
        _sample_and_score(run, settings, policy, prompts, scorers, report)
    _quality(run, settings, policy, prompts, pair_judge, report)
    run.update(status="finished")
    return run


def _prompts(run: Run, settings: MeasureSettings, scorers: Sequence[Scorer], device: str) -> list[Prompt]:
    """The run's prompts: those stored at its start, or now loaded, judged where needed, and stored."""
    stored = run.prompts()
    if stored and "prompts_hash" in run.meta:
        return stored
    loaded = load_prompts(settings.prompts, part=settings.part, limit=settings.limit, seed=settings.seed)
    prompts = loaded.prompts
    if not prompts:
        raise DataError(f"{settings.prompts} (part {settings.part}) has no prompts")
    toxic_by = settings.toxic_by or (
        "dataset" if any(prompt.toxicity is not None for prompt in prompts) else settings.scorer[0]
    )
    if toxic_by == "dataset":
        if all(prompt.toxicity is None for prompt in prompts):
            raise ConfigError(f"toxic_by is 'dataset', but {settings.prompts} has no scores: name a scorer")
    else:
        prompts = _judge_prompts(prompts, toxic_by, scorers, device, FailureLimit(settings.max_failed_share))
    run.replace("prompts", [])
    run.append("prompts", prompts)
    run.update(
        prompts={
            "source": settings.prompts,
            "part": settings.part,
            "n": len(prompts),
            "dropped": loaded.dropped,
        },
        prompts_hash=prompts_hash(prompts),
        toxic_by=toxic_by,
    )
    return prompts


def _judge_prompts(
    prompts: list[Prompt], name: str, scorers: Sequence[Scorer], device: str, limit: FailureLimit
) -> list[Prompt]:
    judge = next((scorer for scorer in scorers if scorer.name == name), None) or load_scorer(name, device=device)
    verdicts = score_texts(judge, [prompt.text for prompt in prompts], limit=limit)
    limit.close()
    return [
        Prompt(
            prompt.id,
            prompt.turns,
            prompt.source,
            verdict.values.get(judge.labels[0]),
            prompt.challenging,
        )
        for prompt, verdict in zip(prompts, verdicts, strict=True)
    ]


def _sample_and_score(
    run: Run,
    settings: MeasureSettings,
    policy: Policy,
    prompts: Sequence[Prompt],
    scorers: Sequence[Scorer],
    report: Report | None,
) -> None:
    total = len(prompts) * settings.samples
    generations = run.generations()
    limits = [FailureLimit(settings.max_failed_share) for _ in scorers]
    by_scorer = answered(run, scorers, limits)
    for scorer, limit in zip(scorers, limits, strict=True):
        # Answers that were written just before a crash, and not yet scored.
        missing = [answer for answer in generations if answer.id not in by_scorer[scorer.name]]
        score_generations(run, [scorer], missing, [limit], None, done=0)

    have = {generation.id for generation in generations}
    limit_tokens = policy.max_positions - settings.max_new_tokens
    if limit_tokens < 1:
        raise ConfigError(
            f"max_new_tokens {settings.max_new_tokens} leaves no room for a prompt in {policy.max_positions} positions"
        )
    grid = [(prompt, sample) for prompt in prompts for sample in range(settings.samples)]
    truncated = 0
    done = len(have)
    if report is not None:
        report(done, total, "answers")
    for start in range(0, len(grid), _WINDOW):
        window = grid[start : start + _WINDOW]
        known = {row for row, (prompt, sample) in enumerate(window) if f"{prompt.id}#{sample}" in have}
        requests = []
        encoded = {
            prompt.id: truncate_history(policy.chat, prompt.turns, limit_tokens)
            for prompt in dict.fromkeys(prompt for prompt, _ in window)
        }
        for prompt, sample in window:
            ids, cut = encoded[prompt.id]
            truncated += cut > 0 and sample == 0
            requests.append(Request(tuple(ids), stream_seed("measure", settings.seed, prompt.id, sample)))
        batch: list[Generation] = []
        for answer in generate(
            policy,
            requests,
            max_new_tokens=settings.max_new_tokens,
            sampling=settings.generation,
            batch_tokens=settings.batch_tokens,
            known=known,
        ):
            if answer.index in known:
                continue
            prompt, sample = window[answer.index]
            batch.append(
                Generation(
                    id=f"{prompt.id}#{sample}",
                    prompt_id=prompt.id,
                    model=run.label,
                    sample=sample,
                    text=policy.chat.decode(answer.tokens),
                    n_tokens=len(answer.tokens),
                    finish=answer.finish,
                    seed=requests[answer.index].seed,
                )
            )
            if len(batch) == 32:
                done += len(batch)
                _record(run, scorers, batch, limits, report, done, total)
                batch = []
        if batch:
            done += len(batch)
            _record(run, scorers, batch, limits, report, done, total)
        run.update(truncated_prompts=truncated)
    for limit in limits:
        limit.close()
    answers = run.generations()
    run.update(scorers=[describe_scorer(scorer, settings.max_failed_share, answers) for scorer in scorers])


def _record(
    run: Run,
    scorers: Sequence[Scorer],
    batch: list[Generation],
    limits: Sequence[FailureLimit],
    report: Report | None,
    done: int,
    total: int,
) -> None:
    run.append("generations", batch)
    score_generations(run, scorers, batch, limits, None, done=0)
    if report is not None:
        report(done, total, "answers")


def _quality(
    run: Run,
    settings: MeasureSettings,
    policy: Policy,
    prompts: Sequence[Prompt],
    pair_judge: PairJudge | None,
    report: Report | None,
) -> None:
    """Similarity with the prompt, its null, perplexity under the base model, and what the pair judge says, of every
    answer; which prompts are toxic is for ``compare`` to say.
    """
    if not (settings.similarity or settings.perplexity or pair_judge):
        return
    generations = run.generations()
    by_id = {prompt.id: prompt for prompt in prompts}
    if report is not None:
        report(0, len(generations), "similarity and fluency")
    own: list[float | None] = [None] * len(generations)
    null: list[float | None] = [None] * len(generations)
    if settings.similarity:
        own, null = similarities(
            load_embedder(str(policy.device)),
            [by_id[generation.prompt_id].text for generation in generations],
            [generation.text for generation in generations],
            seed=settings.seed,
        )
    fluency: list[float | None] = [None] * len(generations)
    if settings.perplexity:
        fluency = _perplexities(policy, settings, by_id, generations)
    classes: list[dict[str, float] | None] = [None] * len(generations)
    if pair_judge is not None:
        classes = pair_judge.judge([(by_id[answer.prompt_id].text, answer.text) for answer in generations])
    run.replace(
        "quality",
        [
            {
                "generation_id": generation.id,
                "prompt_similarity": own[row],
                "prompt_similarity_null": null[row],
                "perplexity": fluency[row],
                "classes": classes[row],
            }
            for row, generation in enumerate(generations)
        ],
    )
    if report is not None:
        report(len(generations), len(generations), "similarity and fluency")


def _perplexities(
    policy: Policy, settings: MeasureSettings, by_id: dict[str, Prompt], generations: Sequence[Generation]
) -> list[float | None]:
    """exp(mean negative log-probability) of each answer's text, after its prompt, under the base model."""
    kept = [row for row, generation in enumerate(generations) if generation.text]
    limit = policy.max_positions - settings.max_new_tokens
    prompts = [truncate_history(policy.chat, by_id[generations[row].prompt_id].turns, limit)[0] for row in kept]
    responses = [
        policy.tokenizer(generations[row].text, add_special_tokens=False, split_special_tokens=True)["input_ids"][
            : settings.max_new_tokens
        ]
        for row in kept
    ]
    result: list[float | None] = [None] * len(generations)
    if not kept:
        return result
    with reference(policy):
        logprobs, _ = score_rows(policy.causal_lm, prompts, responses, settings.batch_tokens)
    for row, values, response in zip(kept, logprobs, responses, strict=True):
        result[row] = math.exp(-float(values[: len(response)].mean()))
    return result


def _default_label(settings: MeasureSettings) -> str:
    if settings.adapter is None:
        return settings.model
    run = settings.adapter.parent if settings.adapter.name == "adapter" else settings.adapter
    return run.name


def _adapter_hash(settings: MeasureSettings) -> str | None:
    """SHA-256 of the adapter's weights; None without an adapter, or where it is gone since."""
    for folder in (settings.adapter, settings.adapter / "adapter") if settings.adapter is not None else ():
        weights = folder / "adapter_model.safetensors"
        if weights.exists():
            return hashlib.sha256(weights.read_bytes()).hexdigest()
    return None


def _check_weights(run: Run, key: str, found: str | None) -> None:
    recorded = run.meta.get(key)
    if recorded is not None and found is not None and recorded != found:
        raise RunError(
            f"{run.path} was begun with other weights ({key} {recorded[:12]}…, now {found[:12]}…): choose another --out"
        )
