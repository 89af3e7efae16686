"""What is read of single answers, appended as it comes: drift.jsonl, attributions.jsonl, faithfulness.jsonl.

After an interruption, answers that are in these files are not read again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save

from rewardlm.config import InterpretSettings
from rewardlm.interpreting.answers import AnswerSample, SampledAnswer, token_positions
from rewardlm.interpreting.attribution import Attributed, attribute
from rewardlm.interpreting.drift import TokenDrift, VocabularyDrift, drift_of_answers
from rewardlm.interpreting.faithfulness import Explained, faithfulness
from rewardlm.interpreting.findings import Stored
from rewardlm.interpreting.inseq import attribute_by_inseq
from rewardlm.interpreting.intervals import mean_of_known
from rewardlm.interpreting.models import RunModel, readers_of
from rewardlm.interpreting.stratified import RunMeans
from rewardlm.interpreting.word_shares import by_word, entropy_bits, share_of_kinds, shares, words
from rewardlm.models.generate import stream_seed
from rewardlm.models.logprobs import pieces
from rewardlm.models.threads import side_by_side
from rewardlm.progress import ProgressCallback
from rewardlm.runs import Run, write_atomically
from rewardlm.stats import FloatArray

_VOCABULARY = "vocabulary.safetensors"
# Words before a token whose explanation is tested. Of fewer, a tenth and a half are the same word.
_FEWEST_WORDS = 4


class DriftRecord(Stored):
    """An answer of R tokens under M models: ``logprobs`` and ``entropy`` [M][R] in nats, ``rank`` and ``choice``
    [M][R], ``kl`` [M][M][R], from the first model to the second; of a model that can't be read they are empty.
    ``words`` are the answer's, each with how many of the tokens spell it."""

    id: str
    author: int
    pair: int
    tokens: list[int]
    logprobs: list[list[float]]
    entropy: list[list[float]]
    rank: list[list[int]]
    choice: list[list[int]]
    kl: list[list[list[float]]]
    # Interpretations that are older than the field have none.
    words: list[tuple[str, int]] | None = None

    def change(self, values: Sequence[Sequence[float]], model: int) -> float:
        """Mean over the answer's tokens, ``model`` minus the baseline; ``values`` are logprobs or entropy."""
        return mean_of_known(np.subtract(values[model], values[0]))


class CompletenessRecord(Stored):
    """What the scores of K explained tokens must add up to, by how much they miss it, and why tokens were refused."""

    difference: list[float]
    gap: list[float]
    bound: list[float]
    steps: list[int]
    refused: list[str | None]


class AttributionRecord(Stored):
    """K tokens of an answer, explained by one ``reader``: shares of the kinds of words before them, and ``scores`` [K],
    an entry a word. A refused token has None everywhere: its scores don't add up to what they explain."""

    id: str
    author: int
    pair: int
    reader: int
    positions: list[int]
    explained: list[str]
    logprobs: list[float]
    entropy_bits: list[float | None]
    template: list[float | None]
    prompt: list[float | None]
    answer: list[float | None]
    words: list[tuple[str, str]]
    scores: list[list[float] | None]
    completeness: CompletenessRecord | None


class FaithfulnessRecord(Stored):
    """A token on which the method was tested; see ``faithfulness.Faithfulness``."""

    reader: int
    id: str
    pair: int
    position: int
    comprehensiveness: float
    sufficiency: float
    random_comprehensiveness: float
    random_sufficiency: float


def record_drift(
    run: Run,
    run_models: Sequence[RunModel],
    sample: AnswerSample,
    settings: InterpretSettings,
    report: ProgressCallback | None,
) -> VocabularyDrift:
    """Every model that can reads every answer. The sums over the vocabulary, of these models, are of the baseline's
    answers alone, and each answer counts for as many of the run's as it stands for.

    These sums have a file of their own, which says how many records they hold. Answers whose records were written after
    it are read again.
    """
    readers = readers_of(run_models, "drift")
    size = run_models[0].policy.causal_lm.get_output_embeddings().weight.shape[0]
    # Two tensors: if no answer of the first batch is the baseline's they are written, and a file can't hold one tensor
    # by two names.
    logprobs, probabilities = (torch.zeros(len(readers), size, dtype=torch.float64) for _ in range(2))
    sums, count = VocabularyDrift(logprobs, probabilities, 0), 0
    weights = RunMeans(settings.n_resamples, settings.seed, sample).weights
    if (run.path / _VOCABULARY).exists():
        stored = load_file(run.path / _VOCABULARY)
        count, positions = int(stored["counts"][0]), float(stored["counts"][1])
        sums = VocabularyDrift(stored["logprobs"], stored["probabilities"], positions)
    records = list(run.read("drift"))
    if len(records) > count:
        run.replace("drift", records[:count])
    known = {record["id"] for record in records[:count]}
    answers = [answer for answer in sample.answers if answer.id not in known]
    tokenizer = run_models[0].policy.tokenizer
    done = count
    # Every batch is a switch from model to model, and without gradients twice as many positions fit.
    budget = 2 * settings.batch_tokens
    prompts, responses = [answer.prompt for answer in answers], [answer.tokens for answer in answers]
    for rows in pieces(run_models[0].policy.causal_lm, prompts, responses, budget):
        batch = [answers[row] for row in rows]
        found, vocabulary = drift_of_answers(
            [run_models[reader] for reader in readers],
            [answer.prompt for answer in batch],
            [answer.tokens for answer in batch],
            [sample.pairs[answer.pair].prompt.turns for answer in batch],
        )
        for answer, one in zip(batch, vocabulary, strict=True):
            if answer.author == 0:
                sums = sums + one.times(float(weights[answer.pair]))
        places = [readers.index(model) if model in readers else None for model in range(len(run_models))]
        read = [_drift_record(tokenizer, answer, one, places) for answer, one in zip(batch, found, strict=True)]
        run.append("drift", [record.dump() for record in read])
        done += len(batch)
        stored = {
            "logprobs": sums.logprobs,
            "probabilities": sums.probabilities,
            "counts": torch.tensor([done, sums.n], dtype=torch.float64),
        }
        write_atomically(run.path / _VOCABULARY, save(stored))
        if report is not None:
            report(done, len(sample.answers), "drift: answers read by every model")
    return sums


def _drift_record(
    tokenizer: Any, answer: SampledAnswer, found: TokenDrift, places: Sequence[int | None]
) -> DriftRecord:
    """``places``: for each model, which of those in ``found`` it is."""

    def by_model(rows: list[Any]) -> list[Any]:
        return [[] if place is None else rows[place] for place in places]

    return DriftRecord(
        id=answer.id,
        author=answer.author,
        pair=answer.pair,
        tokens=list(answer.tokens),
        logprobs=by_model(_rounded(found.logprobs.numpy())),
        entropy=by_model(_rounded(found.entropy.numpy())),
        rank=by_model(found.rank.tolist()),
        choice=by_model(found.choice.tolist()),
        kl=[by_model(rows) if rows else [[]] * len(places) for rows in by_model(_rounded(found.kl.numpy()))],
        words=[(word.text, word.end - word.start) for word in words(tokenizer, (), answer.tokens, ())],
    )


def attribution_tasks(readers: Sequence[int], sample: AnswerSample) -> list[tuple[int, SampledAnswer]]:
    """(reader, answer): every model reads its own answers, and the tuned ones read the baseline's too."""
    return [
        (reader, answer)
        for reader in readers
        for answer in sample.answers
        if answer.author == reader or (answer.author == 0 and reader > 0)
    ]


def record_attribution(
    run: Run,
    run_models: Sequence[RunModel],
    sample: AnswerSample,
    settings: InterpretSettings,
    report: ProgressCallback | None,
) -> None:
    """Explain tokens of every answer by the models that read it; see ``attribution_tasks``."""
    tasks = attribution_tasks(readers_of(run_models, "attribution"), sample)
    known = {(record["reader"], record["id"]) for record in run.read("attributions")}
    done = len(known)

    def count(answers: int) -> None:
        nonlocal done
        done += answers
        if report is not None:
            report(done, len(tasks), f"attribution: answers by {settings.attribution.method}")

    for reader, run_model in enumerate(run_models):
        answers = [answer for who, answer in tasks if who == reader and (reader, answer.id) not in known]
        if answers:
            _explain(run, reader, run_model, answers, settings, count)


def _explain(
    run: Run,
    reader: int,
    run_model: RunModel,
    answers: Sequence[SampledAnswer],
    settings: InterpretSettings,
    count: Callable[[int], None],
) -> None:
    own = settings.attribution
    positions = [token_positions(answer, own.tokens, settings.seed) for answer in answers]

    def write(rows: Sequence[int], found: Sequence[Attributed]) -> None:
        records = [
            _attribution_record(reader, run_model, answers[row], positions[row], one)
            for row, one in zip(rows, found, strict=True)
        ]
        run.append("attributions", [record.dump() for record in records])
        count(len(rows))

    prompts, responses = [answer.prompt for answer in answers], [answer.tokens for answer in answers]
    tokenizer = run_model.policy.tokenizer
    with run_model.on(merge=True) as model:
        if own.method.startswith("inseq:"):
            attribute_by_inseq(model, tokenizer, prompts, responses, positions, own.method[6:], report=write)
            return
        attribute(
            model,
            prompts,
            responses,
            positions,
            method=own.method,
            baseline=int(tokenizer.eos_token_id) if own.baseline == "end" else None,
            steps=own.steps,
            tolerance=own.tolerance,
            most_steps=own.most_steps,
            budget=settings.batch_tokens,
            report=write,
        )


def record_faithfulness(
    run: Run,
    run_models: Sequence[RunModel],
    sample: AnswerSample,
    settings: InterpretSettings,
    report: ProgressCallback | None,
) -> None:
    """Test the method on some of the tokens that it has explained; see interpreting.faithfulness."""
    answers = {answer.id: answer for answer in sample.answers}
    known = {(record["reader"], record["id"]) for record in run.read("faithfulness")}
    done = len(known)
    chosen = _to_test([AttributionRecord.model_validate(record) for record in run.read("attributions")], settings)
    for reader, run_model in enumerate(run_models):
        mine = [(record, k) for record, k in chosen if record.reader == reader and (reader, record.id) not in known]
        if not mine:
            continue
        to_test = [_explained(run_model, answers[record.id], record, k, settings) for record, k in mine]
        with run_model.on(merge=True) as model:
            tested = side_by_side(model, partial(faithfulness, model, budget=settings.batch_tokens), to_test)
            for (record, k), found in zip(mine, tested, strict=True):
                measures = {name: float(f"{value:.6g}") for name, value in vars(found).items()}
                kept = FaithfulnessRecord(
                    reader=reader, id=record.id, pair=record.pair, position=record.positions[k], **measures
                )
                run.append("faithfulness", [kept.dump()])
                done += 1
                if report is not None:
                    report(done, len(chosen), "faithfulness: tokens read again with parts of what is before them")


def _to_test(records: Sequence[AttributionRecord], settings: InterpretSettings) -> list[tuple[AttributionRecord, int]]:
    """One explained token of each model's own answers, model after model and prompt after prompt in turn, at most
    ``faithfulness_tokens``: the record, and which of its tokens it is."""
    own = {(record.pair, record.reader): record for record in records if record.reader == record.author}
    pairs, models = (sorted({key[of] for key in own}) for of in (0, 1))
    turns = [(pair, models[(place + turn) % len(models)]) for turn in models for place, pair in enumerate(pairs)]
    found = []
    for record in (own[turn] for turn in turns if turn in own):
        explained = [k for k, row in enumerate(record.scores) if row is not None and len(row) > _FEWEST_WORDS]
        if explained:
            rng = np.random.default_rng(stream_seed("interpret faithfulness", settings.seed, record.id))
            found.append((record, explained[int(rng.integers(len(explained)))]))
    return found[: settings.attribution.faithfulness_tokens]


def _explained(
    run_model: RunModel, answer: SampledAnswer, record: AttributionRecord, k: int, settings: InterpretSettings
) -> Explained:
    """The record's k-th token as ``faithfulness`` takes it, with the words that the page shows shares of."""
    end = len(answer.prompt) + record.positions[k]
    scores = record.scores[k] or []
    groups = words(run_model.policy.tokenizer, answer.prompt, answer.tokens, answer.turns)[: len(scores)]
    return Explained(
        context=(*answer.prompt, *answer.tokens)[:end],
        token=answer.tokens[record.positions[k]],
        words=[(word.start, min(word.end, end)) for word in groups],
        sizes=np.abs(scores),
        seed=stream_seed("interpret faithfulness", settings.seed, record.id),
        start=len(answer.prompt),
    )


def _attribution_record(
    reader: int, run_model: RunModel, answer: SampledAnswer, positions: Sequence[int], found: Attributed
) -> AttributionRecord:
    tokenizer = run_model.policy.tokenizer
    groups = words(tokenizer, answer.prompt, answer.tokens, answer.turns)
    scores = by_word(found.scores.double().numpy(), groups)
    distribution = shares(scores)
    kinds = share_of_kinds(distribution, groups)
    before = [sum(word.start < len(answer.prompt) + at for word in groups) for at in positions]
    return AttributionRecord(
        id=answer.id,
        author=answer.author,
        pair=answer.pair,
        reader=reader,
        positions=list(positions),
        explained=[tokenizer.decode([answer.tokens[at]]) for at in positions],
        logprobs=_rounded(found.logprobs.numpy()),
        entropy_bits=_known(entropy_bits(distribution)),
        **{kind: _known(share) for kind, share in kinds.items()},
        words=[(word.text, word.kind) for word in groups],
        scores=[None if np.isnan(row).any() else _rounded(row[:n]) for row, n in zip(scores, before, strict=True)],
        completeness=_completeness(found),
    )


def _completeness(found: Attributed) -> CompletenessRecord | None:
    known = found.completeness
    if known is None:
        return None
    return CompletenessRecord(
        difference=_rounded(known.difference.numpy()),
        gap=_rounded(known.gap.numpy()),
        bound=_rounded(known.bound.numpy()),
        steps=known.steps.tolist(),
        refused=[known.refusal(k) for k in range(len(known.steps))],
    )


def _rounded(values: FloatArray) -> Any:
    """As lists, to six significant digits. More would be noise, and would double the file."""
    return np.vectorize(lambda value: float(f"{value:.6g}"), otypes=[float])(values).tolist()


def _known(values: FloatArray) -> list[float | None]:
    return [None if np.isnan(value) else float(f"{value:.6g}") for value in values]
