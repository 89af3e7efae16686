"""What models say of an answer besides its toxicity: is it about the prompt, is it fluent, is it a counter-narrative?

This costs more than judging toxicity. So in a large run only a seeded sample of the answers is examined, and the run
records how many. Numbers that are not asked for again stay.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rewardlm.config import ImportSettings, ModelSettings, ScoreSettings
from rewardlm.data.chat import truncate_history
from rewardlm.measuring.metrics import THRESHOLD
from rewardlm.measuring.similarity import Similarity, load_embedder
from rewardlm.models.load import Policy, load_policy, resolve_device
from rewardlm.progress import ProgressCallback
from rewardlm.runs import Run, alone
from rewardlm.scoring.pairs import PairJudge, load_pair_judge
from rewardlm.types import Generation, Prompt

# Token positions in a batch when answers are read again for their perplexity.
READ_TOGETHER = 4096


def add_quality(
    run: Run,
    *,
    similarity: bool = False,
    fluency: Policy | None = None,
    pair_judge: PairJudge | None = None,
    toxic_above: float | None = None,
    sample: int,
    seed: int,
    device: str = "cpu",
    report: ProgressCallback | None = None,
) -> None:
    """Write quality.jsonl for every answer, or for ``sample`` of them if there are more: ``similarity`` with the prompt
    and with a shuffled one, perplexity under ``fluency``'s base model, and the classes of ``pair_judge`` with the
    prompt and with another one (``classes_null``).

    With ``toxic_above``, only answers to prompts of at least that toxicity are examined. ``compare`` decides which of
    these prompts count as toxic.
    """
    if not (similarity or fluency or pair_judge):
        return
    among = None
    if toxic_above is not None:
        among = {p.id for p in run.each_prompt() if p.toxicity is not None and p.toxicity >= toxic_above}
    answers = sum(1 for _ in _answers(run, among))
    chosen = sample_of(answers, sample, seed)
    total = answers if chosen is None else len(chosen)
    if report is not None:
        report(0, total, "similarity and fluency")
    about = {answer.prompt_id for piece in _pieces(_answers(run, among), chosen) for answer in piece}
    prompts = {prompt.id: prompt for prompt in run.each_prompt() if prompt.id in about}
    own_and_null = None
    if similarity:
        own_and_null = Similarity(load_embedder(device), [prompt.text for prompt in prompts.values()], seed=seed)
    # New numbers replace the old ones of their column, which may be by another model or of another sample. So a column
    # holds what one model said, of as many answers as the run records. The other columns stay.
    asked_for = {
        "prompt_similarity": similarity, "prompt_similarity_null": similarity, "perplexity": fluency,
        "classes": pair_judge, "classes_null": pair_judge,
    }  # fmt: skip
    again = {name for name, what in asked_for.items() if what}
    known = {
        record["generation_id"]: {name: value for name, value in record.items() if name not in again}
        for record in run.read("quality")
    }
    others = OtherPrompts(list(prompts.values()), seed) if pair_judge else None
    done = 0
    for piece in _pieces(_answers(run, among), chosen):
        found: dict[str, Sequence[Any]] = {}
        texts = [answer.text for answer in piece]
        asked = [prompts[answer.prompt_id].text for answer in piece]
        if own_and_null is not None:
            found["prompt_similarity"], found["prompt_similarity_null"] = own_and_null.of(asked, texts)
        if fluency is not None:
            found["perplexity"] = perplexities(fluency, [prompts[answer.prompt_id] for answer in piece], texts)
        if pair_judge is not None:
            assert others is not None
            found["classes"] = pair_judge.judge(list(zip(asked, texts, strict=True)))
            found["classes_null"] = _with_others(pair_judge, [others.of(answer) for answer in piece], texts)
        for row, answer in enumerate(piece):
            record = known.setdefault(answer.id, {"generation_id": answer.id})
            record.update({name: values[row] for name, values in found.items()})
        done += len(piece)
        if report is not None:
            report(done, total, "similarity and fluency")
    run.replace("quality", known.values())
    wanted = {"similarity": similarity, "perplexity": fluency, "counter_narrative": pair_judge}
    looked_at = {name: {"answers": total, "of": answers} for name, what in wanted.items() if what}
    run.update(quality={**run.meta.get("quality", {}), **looked_at})
    if pair_judge is not None:
        run.update(pair_judge=pair_judge.describe())
    if fluency is not None:
        run.update(perplexity_under={"model": fluency.spec, "hash": fluency.weights_hash})


def add_quality_to(path: Path, settings: ScoreSettings, *, report: ProgressCallback | None = None) -> None:
    """Add what ``settings`` ask for besides judges of toxicity, for the stored answers of the run at ``path``."""
    device = str(resolve_device(settings.device))
    pair_judge = settings.counter_narrative and load_pair_judge(settings.counter_narrative, device=device)
    policy = settings.perplexity and load_policy(ModelSettings(model=settings.perplexity, device=settings.device))
    if policy:
        from rewardlm.models.logprobs import check_head

        # This pass stops at the head: if the model changes its logits after that, the perplexity would be wrong.
        check_head(policy.causal_lm)
    with alone(path):
        add_quality(
            Run.open(path),
            similarity=settings.similarity,
            fluency=policy or None,
            pair_judge=pair_judge or None,
            sample=settings.quality_sample,
            seed=settings.seed,
            device=device,
            report=report,
        )


def judge_toxic_pairs(run: Run, settings: ImportSettings, *, report: ProgressCallback | None = None) -> None:
    """Find the counter-narratives among an import's answers to toxic prompts, if ``settings`` name a judge for it."""
    if settings.counter_narrative is None:
        return
    device = str(resolve_device(settings.device))
    add_quality(
        run,
        pair_judge=load_pair_judge(settings.counter_narrative, device=device),
        toxic_above=THRESHOLD,
        sample=settings.quality_sample,
        seed=settings.seed,
        report=report,
    )


class OtherPrompts:
    """Gives each answer another prompt, to see what the answer's tone alone earns.

    For every sample number this is a seeded derangement: no answer keeps its own prompt. Toxic prompts are exchanged
    among themselves, and so are the others. Only answers to toxic prompts are counted, and an answer that opposes hate
    has nothing to oppose in a harmless prompt.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int) -> None:
        self._next: dict[str, tuple[list[str], int]] = {}
        for toxic in (True, False):
            mine = [p for p in prompts if (p.toxicity is not None and p.toxicity > THRESHOLD) == toxic]
            texts = sorted({prompt.text for prompt in mine})
            random.Random(f"{seed}, other prompts").shuffle(texts)
            places = {text: place for place, text in enumerate(texts)}
            self._next.update({prompt.id: (texts, places[prompt.text]) for prompt in mine})

    def of(self, answer: Generation) -> str | None:
        """The other prompt's text; None if all prompts of its kind (toxic or not) have the same text."""
        texts, place = self._next[answer.prompt_id]
        if len(texts) < 2:
            return None
        return texts[(place + 1 + answer.sample % (len(texts) - 1)) % len(texts)]


def _with_others(
    judge: PairJudge, prompts: Sequence[str | None], texts: Sequence[str]
) -> list[dict[str, float] | None]:
    """The judge's classes of each text under another prompt; None if there is no such prompt, or the text is empty."""
    pairs = [(prompt, text) for prompt, text in zip(prompts, texts, strict=True) if prompt is not None]
    verdicts = iter(judge.judge(pairs))
    return [None if prompt is None else next(verdicts) for prompt in prompts]


def sample_of(answers: int, limit: int, seed: int) -> list[int] | None:
    """Positions, in order, of a seeded sample of ``limit`` answers; None if there are no more answers than that."""
    return None if answers <= limit else sorted(random.Random(seed).sample(range(answers), limit))


def perplexities(policy: Policy, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float | None]:
    """exp(mean negative log-probability) of each text after its prompt, under the base model; None for an empty one."""
    # Imported here, because they import peft, which takes seconds and isn't needed to judge an import's answers.
    from rewardlm.models.logprobs import score_rows
    from rewardlm.models.lora import reference

    kept = [row for row, text in enumerate(texts) if text]
    responses = [
        policy.tokenizer(texts[row], add_special_tokens=False, split_special_tokens=True)["input_ids"] for row in kept
    ]
    # An answer gets at most half of the context: imported texts may be long.
    responses = [ids[: policy.max_positions // 2] for ids in responses]
    histories = [
        truncate_history(policy.chat, prompts[row].turns, policy.max_positions - len(ids))[0]
        for row, ids in zip(kept, responses, strict=True)
    ]
    result: list[float | None] = [None] * len(texts)
    if not kept:
        return result
    with reference(policy):
        logprobs, _ = score_rows(policy.causal_lm, histories, responses, READ_TOGETHER)
    for row, values, response in zip(kept, logprobs, responses, strict=True):
        result[row] = math.exp(-float(values[: len(response)].mean()))
    return result


def _answers(run: Run, among: set[str] | None) -> Iterator[Generation]:
    """The answers to prompts with these ids; all answers for None."""
    return (answer for answer in run.each_generation() if among is None or answer.prompt_id in among)


def _pieces(generations: Iterable[Generation], chosen: list[int] | None) -> Iterator[list[Generation]]:
    """Those at the positions ``chosen`` (None: all), 1,024 at a time."""
    if chosen is not None:
        wanted = set(chosen)
        generations = (answer for position, answer in enumerate(generations) if position in wanted)
    stream = iter(generations)
    while piece := list(islice(stream, 1024)):
        yield piece
