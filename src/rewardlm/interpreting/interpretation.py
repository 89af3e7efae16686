"""Runs in, an interpretation out: every part in turn, each answer's results written down as they come.

A reading that was interrupted goes on: what is in ``drift.jsonl`` and ``attributions.jsonl`` isn't read again. The
summary, ``interpretation.json``, is made from these at the end, and is all that the report needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save

from rewardlm.config import InterpretSettings
from rewardlm.errors import RunError
from rewardlm.interpreting import drift, peers, summary, within
from rewardlm.interpreting.attribution import Attributed, attribute
from rewardlm.interpreting.faithfulness import Explained, faithfulness
from rewardlm.interpreting.sample import Answer, Sample, choose_scorer, draw, load_runs, token_positions
from rewardlm.interpreting.subjects import Subject, load_subjects
from rewardlm.interpreting.weights import RunMeans
from rewardlm.interpreting.words import by_word, entropy_bits, share_of_kinds, shares, words
from rewardlm.measuring.measured import Measured
from rewardlm.measuring.metrics import FloatArray
from rewardlm.models.generate import stream_seed
from rewardlm.models.logprobs import microbatches
from rewardlm.runs import Run, alone, write_atomically
from rewardlm.scoring.scorer import check_judges

KIND = "interpretation"
# May differ when an interpretation goes on.
_FREE = ("device", "batch_tokens")
_VOCABULARY = "vocabulary.safetensors"
# Newer than some interpretations, which did without.
_ADDED = (
    "attribution.faithfulness_tokens",
    "inside.redraw_pairs",
    "inside.shuffles",
    "inside.random_directions",
    "inside.push_margin",
    "inside.null_adapters",
    "inside.ablation_prompts",
    "inside.ablation_answers",
    "inside.random_sets",
)
# Of integrated gradients alone: older ones weren't checked, so they don't go on.
_OF_THE_PATH = ("attribution.tolerance", "attribution.most_steps")
# Before a token whose explanation is tested: of fewer, a tenth and a half are the same one.
_FEWEST_WORDS = 4

Report = Callable[[int, int, str], None]


def interpret(paths: Sequence[Path], settings: InterpretSettings, out: Path, *, report: Report | None = None) -> Run:
    """Look into the models of measured runs, the baseline first; a finished interpretation is returned as it is.

    Raises RunError for runs that don't fit (other prompts, no judge in common, no model) or where another command
    writes ``out``, and ModelError where models can't be loaded or held against each other.
    """
    with alone(out):
        return _interpret(paths, settings, out, report)


def _interpret(paths: Sequence[Path], settings: InterpretSettings, out: Path, report: Report | None) -> Run:
    if len(paths) < 2:
        raise RunError("interpret holds models against a baseline: name at least two measured runs, the baseline first")
    measured = load_runs(paths)
    scorer = choose_scorer(measured, settings.scorer)
    recorded = {
        **settings.model_dump(mode="json"),
        "scorer": scorer,
        "runs": [str(Path(path).absolute()) for path in paths],
    }
    run = Run.start(
        out,
        kind=KIND,
        label=" → ".join(one.label for one in measured),
        settings=recorded,
        free=_FREE,
        added=_ADDED if settings.attribution.method == "integrated_gradients" else (*_ADDED, *_OF_THE_PATH),
    )
    if run.finished:
        return run
    if settings.word_judge:
        check_judges([settings.word_judge])
    subjects = load_subjects([one.run for one in measured], settings)
    for one, subject in zip(measured, subjects, strict=True):
        one.label = subject.label
    weights = [[one.run.meta.get("model_hash"), one.run.meta.get("adapter_hash")] for one in measured]
    if run.meta.get("weights", weights) != weights:
        raise RunError(f"{run.path} was begun with other weights of these runs' models: choose another --out")
    run.update(weights=weights, adapter_off_is_base=True)
    sample = draw(measured, subjects, scorer=scorer, limit=settings.limit, seed=settings.seed)
    sums = _drift(run, subjects, sample, settings, report)
    _attribution(run, subjects, sample, settings, report)
    _faithfulness(run, subjects, sample, settings, report)
    result = summary.summarise(run, measured, subjects, sample, sums, settings)
    result |= _inside(run, measured, subjects, sample, settings, report)
    run.store(KIND, result)
    run.update(status="finished")
    return run


def _inside(
    run: Run,
    measured: Sequence[Measured],
    subjects: Sequence[Subject],
    sample: Sample,
    settings: InterpretSettings,
    report: Report | None,
) -> dict[str, Any]:
    if not settings.look_inside:
        return {"inside": None, "inside_notes": ["The residual stream was not asked for (look_inside=false)."]}
    found, notes = within.examine(measured, subjects, sample, settings, report=report)
    return {"inside": found, "inside_notes": notes}


def _drift(
    run: Run, subjects: Sequence[Subject], sample: Sample, settings: InterpretSettings, report: Report | None
) -> drift.VocabularyDrift:
    """Every model reads every answer; the sums over the vocabulary are of the baseline's answers alone, each as often
    as it stands for one of the run.

    These sums are kept in a file of their own, with the number of records that they hold: a record that was written
    after them is read again.
    """
    models, size = len(subjects), subjects[0].policy.causal_lm.get_output_embeddings().weight.shape[0]
    nothing = torch.zeros(models, size, dtype=torch.float64)
    sums, count = drift.VocabularyDrift(nothing, nothing, 0), 0
    weights = RunMeans(settings.n_resamples, settings.seed, sample).weights
    if (run.path / _VOCABULARY).exists():
        stored = load_file(run.path / _VOCABULARY)
        # Whole numbers are of an older version, which did not weight: such answers are read again.
        if stored["counts"].is_floating_point():
            count, positions = int(stored["counts"][0]), float(stored["counts"][1])
            sums = drift.VocabularyDrift(stored["logprobs"], stored["probabilities"], positions)
    records = list(run.read("drift"))
    if len(records) > count:
        run.replace("drift", records[:count])
    known = {record["id"] for record in records[:count]}
    answers = [answer for answer in sample.answers if answer.id not in known]
    lengths = [len(answer.prompt) + len(answer.tokens) for answer in answers]
    done = count
    for rows in microbatches(lengths, settings.batch_tokens):
        batch = [answers[row] for row in rows]
        found, vocabulary = drift.read(
            subjects, [answer.prompt for answer in batch], [answer.tokens for answer in batch]
        )
        for answer, one in zip(batch, vocabulary, strict=True):
            if answer.author == 0:
                sums = sums + one.times(float(weights[answer.pair]))
        run.append("drift", [_drift_record(answer, one) for answer, one in zip(batch, found, strict=True)])
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


def _drift_record(answer: Answer, found: drift.TokenDrift) -> dict[str, Any]:
    return {
        "id": answer.id,
        "author": answer.author,
        "pair": answer.pair,
        "tokens": list(answer.tokens),
        "logprobs": _rounded(found.logprobs.numpy()),
        "entropy": _rounded(found.entropy.numpy()),
        "rank": found.rank.tolist(),
        "choice": found.choice.tolist(),
        "kl": _rounded(found.kl.numpy()),
    }


def attribution_tasks(models: int, sample: Sample) -> list[tuple[int, Answer]]:
    """(reader, answer): every model reads its own answers, and the tuned ones read the baseline's too."""
    return [
        (reader, answer)
        for reader in range(models)
        for answer in sample.answers
        if answer.author == reader or (answer.author == 0 and reader > 0)
    ]


def _attribution(
    run: Run, subjects: Sequence[Subject], sample: Sample, settings: InterpretSettings, report: Report | None
) -> None:
    tasks = attribution_tasks(len(subjects), sample)
    known = {(record["reader"], record["id"]) for record in run.read("attributions")}
    done = len(known)
    method = settings.attribution.method
    for reader, subject in enumerate(subjects):
        answers = [answer for who, answer in tasks if who == reader and (reader, answer.id) not in known]
        if not answers:
            continue
        positions = [token_positions(answer, settings.attribution.tokens, settings.seed) for answer in answers]

        def write(
            rows: Sequence[int],
            found: Sequence[Attributed],
            reader: int = reader,
            subject: Subject = subject,
            answers: Sequence[Answer] = answers,
            positions: Sequence[Sequence[int]] = positions,
        ) -> None:
            nonlocal done
            run.append(
                "attributions",
                [
                    _attribution_record(reader, subject, answers[row], positions[row], one)
                    for row, one in zip(rows, found, strict=True)
                ],
            )
            done += len(rows)
            if report is not None:
                report(done, len(tasks), f"attribution: answers by {method}")

        prompts, responses = [answer.prompt for answer in answers], [answer.tokens for answer in answers]
        with subject.on(merge=True) as model:
            if method.startswith("inseq:"):
                peers.attribute_by_inseq(
                    model, subject.policy.tokenizer, prompts, responses, positions, method[6:], report=write
                )
                continue
            attribute(
                model,
                prompts,
                responses,
                positions,
                method=method,
                baseline=_baseline(subject, settings),
                steps=settings.attribution.steps,
                tolerance=settings.attribution.tolerance,
                most_steps=settings.attribution.most_steps,
                budget=settings.batch_tokens,
                report=write,
            )


def _faithfulness(
    run: Run, subjects: Sequence[Subject], sample: Sample, settings: InterpretSettings, report: Report | None
) -> None:
    """Test the method on some of the tokens that it has explained; see interpreting.faithfulness."""
    answers = {answer.id: answer for answer in sample.answers}
    known = {(record["reader"], record["id"]) for record in run.read("faithfulness")}
    done = len(known)
    chosen = _to_test(list(run.read("attributions")), settings)
    for reader, subject in enumerate(subjects):
        mine = [
            (record, k) for record, k in chosen if record["reader"] == reader and (reader, record["id"]) not in known
        ]
        with subject.on(merge=True) as model:
            for record, k in mine:
                one = _explained(subject, answers[record["id"]], record, k, settings)
                found = faithfulness(model, one, budget=settings.batch_tokens)
                run.append(
                    "faithfulness",
                    [
                        {
                            "reader": reader,
                            "id": record["id"],
                            "pair": record["pair"],
                            "position": record["positions"][k],
                            **{name: float(f"{value:.6g}") for name, value in vars(found).items()},
                        }
                    ],
                )
                done += 1
                if report is not None:
                    report(done, len(chosen), "faithfulness: tokens read again with parts of what is before them")


def _to_test(records: Sequence[dict[str, Any]], settings: InterpretSettings) -> list[tuple[dict[str, Any], int]]:
    """One explained token of each model's own answers, model after model and prompt after prompt in turn, at most
    ``faithfulness_tokens``: the record, and which of its tokens it is."""
    own = {(record["pair"], record["reader"]): record for record in records if record["reader"] == record["author"]}
    pairs, models = (sorted({key[of] for key in own}) for of in (0, 1))
    turns = [(pair, models[(place + turn) % len(models)]) for turn in models for place, pair in enumerate(pairs)]
    found = []
    for record in (own[turn] for turn in turns if turn in own):
        explained = [k for k, row in enumerate(record["scores"]) if row is not None and len(row) > _FEWEST_WORDS]
        if explained:
            rng = np.random.default_rng(stream_seed("interpret faithfulness", settings.seed, record["id"]))
            found.append((record, explained[int(rng.integers(len(explained)))]))
    return found[: settings.attribution.faithfulness_tokens]


def _explained(
    subject: Subject, answer: Answer, record: dict[str, Any], k: int, settings: InterpretSettings
) -> Explained:
    """The record's k-th token as ``faithfulness`` takes it, with the words that the page shows shares of."""
    end = len(answer.prompt) + record["positions"][k]
    groups = words(subject.policy.tokenizer, answer.prompt, answer.tokens, answer.turns)[: len(record["scores"][k])]
    return Explained(
        context=(*answer.prompt, *answer.tokens)[:end],
        token=answer.tokens[record["positions"][k]],
        words=[(word.start, min(word.end, end)) for word in groups],
        sizes=np.abs(record["scores"][k]),
        seed=stream_seed("interpret faithfulness", settings.seed, record["id"]),
    )


def _baseline(subject: Subject, settings: InterpretSettings) -> int | None:
    return int(subject.policy.tokenizer.eos_token_id) if settings.attribution.baseline == "end" else None


def _attribution_record(
    reader: int, subject: Subject, answer: Answer, positions: Sequence[int], found: Attributed
) -> dict[str, Any]:
    tokenizer = subject.policy.tokenizer
    groups = words(tokenizer, answer.prompt, answer.tokens, answer.turns)
    scores = by_word(found.scores.double().numpy(), groups)
    distribution = shares(scores)
    kinds = share_of_kinds(distribution, groups)
    before = [sum(word.start < len(answer.prompt) + at for word in groups) for at in positions]
    return {
        "id": answer.id,
        "author": answer.author,
        "pair": answer.pair,
        "reader": reader,
        "positions": list(positions),
        "explained": [tokenizer.decode([answer.tokens[at]]) for at in positions],
        "logprobs": _rounded(found.logprobs.numpy()),
        "entropy_bits": _known(entropy_bits(distribution)),
        **{kind: _known(share) for kind, share in kinds.items()},
        "words": [[word.text, word.kind] for word in groups],
        # A token that was refused has no scores: its sum would be another one's.
        "scores": [None if np.isnan(row).any() else _rounded(row[:n]) for row, n in zip(scores, before, strict=True)],
        "completeness": _completeness(found),
    }


def _completeness(found: Attributed) -> dict[str, Any] | None:
    """Of each explained token what its scores must add up to, by how much they don't, and why it was refused."""
    known = found.completeness
    if known is None:
        return None
    return {
        "difference": _rounded(known.difference.numpy()),
        "gap": _rounded(known.gap.numpy()),
        "bound": _rounded(known.bound.numpy()),
        "steps": known.steps.tolist(),
        "refused": [known.refusal(k) for k in range(len(known.steps))],
    }


def _rounded(values: FloatArray) -> Any:
    """As lists, to six significant digits: what is beyond is noise, and doubles the file."""
    return np.vectorize(lambda value: float(f"{value:.6g}"), otypes=[float])(values).tolist()


def _known(values: FloatArray) -> list[float | None]:
    return [None if np.isnan(value) else float(f"{value:.6g}") for value in values]
