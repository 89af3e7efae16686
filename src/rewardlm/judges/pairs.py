"""Train the judge of (prompt, answer) pairs: an encoder that reads both, a LoRA adapter, a softmax over four classes.

``pair_data`` makes its examples; ``pair_evaluation`` measures how good it is.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import nn
from transformers import AutoTokenizer, DataCollatorWithPadding, set_seed

from rewardlm.config import flatten
from rewardlm.data.dialogues import load_dialogues, normalised
from rewardlm.disk import writing
from rewardlm.errors import DataError, ModelError
from rewardlm.judges import trainer
from rewardlm.judges.card import add_to_card, command, save_record
from rewardlm.judges.pair_data import (
    Exchange,
    Hate,
    PairExample,
    answered,
    controls,
    draw,
    made_up,
    names_group,
    own_exchanges,
    own_texts,
    split_exchanges,
    target_of,
    thinned,
)
from rewardlm.judges.pair_evaluation import evaluate_pairs, held_out_controls
from rewardlm.judges.settings import PairJudgeSettings
from rewardlm.judges.texts import LabelledText, load_labelled
from rewardlm.judges.trainer import Watch, head_of, save_adapter, with_fresh_head
from rewardlm.models.load import resolve_device
from rewardlm.progress import ProgressCallback
from rewardlm.runs import Run, alone
from rewardlm.scoring.encoder import locate_encoder, public_name
from rewardlm.scoring.pairs import PAIR_LABELS, encode_pair, folder_of, load_pair_judge
from rewardlm.scoring.record import JudgeRecord, Source
from rewardlm.training.checkpoints import what_is_safe
from rewardlm.types import DialogueSet

Say = Callable[[str], None]

FREE_SETTINGS = ("device",)
# Words; a comment of three paragraphs would leave the answer no room.
_LONGEST_PROMPT = 60

_RESEARCH_ONLY = "research only, may not be redistributed"
_LICENCES = {
    "starter": "Apache-2.0, our own",
    "dialoconan": _RESEARCH_ONLY,
    "multitarget-conan": _RESEARCH_ONLY,
    "conan": _RESEARCH_ONLY,
}
_LIMITS = (
    "English only.",
    "It reads the prompt's last turn and the answer, nothing before them.",
    "It judges by the words of both whether they belong together; it knows no facts, so a false or absurd answer that "
    "speaks up for the group counts as a counter-narrative.",
    "How it reads irony, and hate in a polite tone, has not been measured.",
    "Abuse of the prompt's writer is called agreement: it opposes the hate, and is no counter-narrative.",
)


def train_pair_judge(
    settings: PairJudgeSettings, out: Path, *, report: ProgressCallback | None = None, say: Say | None = None
) -> Run:
    """Train a pair judge in ``out``; a finished run is returned as it is, a killed one resumes from its last epoch.

    ``out`` itself is then the judge, for ``measure counter_narrative=OUT``. Raises DataError for dialogues that leave
    nothing to train on or to hold out, ModelError for an encoder that can't be loaded, TrainingError for NaN, and
    RunError where another command writes to ``out``.
    """
    with alone(out):
        return _train(settings, out, report, say)


def _train(settings: PairJudgeSettings, out: Path, report: ProgressCallback | None, say: Say | None) -> Run:
    run = Run.start(out, kind="judge", label=out.name, settings=settings.model_dump(mode="json"), free=FREE_SETTINGS)
    if run.finished:
        return run
    loaded = load_dialogues(settings.dialogues)
    train, held_out = split_exchanges(loaded.dialogues, validation=settings.validation)
    known = {normalised(text) for exchange in held_out for text in (exchange.hate, exchange.counter)}
    ours = [e for e in own_exchanges() if not {normalised(e.hate), normalised(e.counter)} & known]
    if not train or not held_out:
        raise DataError(
            f"{settings.dialogues}: {len(train)} exchanges to train on, {len(held_out)} held out; both are needed: "
            "give more unrelated dialogues, or another validation share"
        )
    hate, hate_sources = _published(settings.hate, known)
    toxic, toxic_sources = _without_group(settings.toxic, known)
    epochs = [_epoch([*train, *ours], hate, toxic, settings, number) for number in range(settings.epochs)]
    unseen = draw(held_out, own_texts("held_out"), "held out")
    tests = held_out_controls(held_out, settings.seed)
    if say is not None:
        say(f"{len(train):,} exchanges to train on, {len(held_out):,} held out; {len(epochs[0]):,} pairs an epoch")

    source, revision = locate_encoder(settings.encoder)
    set_seed(settings.seed)
    tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
    model = _model(settings, source, revision)
    started_from = None if settings.start is None else _begin_with(model, settings.start)
    if head_of(model).bias is None:
        raise ModelError(
            f"{settings.encoder} has a head without bias, as decoders do: choose an encoder of BERT's family"
        )
    validation = _rows(tokenizer, unseen, settings)
    fitting = trainer.JudgeTrainer(
        model=model,
        # The rows are the examples of all epochs, drawn beforehand, so the trainer makes one pass over them.
        args=trainer.arguments(
            run,
            settings,
            learning_rate=settings.learning_rate,
            every=math.ceil(len(epochs[0]) / settings.batch_size),
            num_train_epochs=1,
            eval_strategy="steps",
            train_sampling_strategy="group_by_length",
        ),
        train_dataset=_rows(tokenizer, [example for epoch in epochs for example in epoch], settings),
        eval_dataset=validation,
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[Watch(run, report)],
    )
    trainer.fit(fitting, run)

    predicted = fitting.predict(validation)  # in its own order, by length
    model = fitting.accelerator.unwrap_model(fitting.model).to("cpu").float().eval()
    temperature = fit_temperature(predicted.predictions, predicted.label_ids)
    head = head_of(model)
    with torch.no_grad():
        head.weight.div_(temperature)
        head.bias.div_(temperature)
    sources = [_dialogues_source(loaded, len(train)), _our_lines(), *hate_sources, *toxic_sources]
    with writing(out, safe=what_is_safe(out / "checkpoints")):
        _save(settings, out, model, revision, temperature, sources, started_from)
    # Figures are those of the judge as it was saved: rounded to half precision.
    judge = load_pair_judge(str(out), device=str(resolve_device(settings.device)))
    figures = evaluate_pairs(judge, unseen, tests)
    add_to_card(out, {f"{Path(settings.dialogues).name}, held out": figures})
    run.update(status="finished", steps=fitting.state.global_step)
    return run


def fit_temperature(logits: Any, labels: Any) -> float:
    """T that minimises the cross-entropy of softmax(z / T) (Guo et al. 2017, section 4.2).

    Args:
        logits: Float[N, L].
        labels: Int[N].
    """

    def loss(log_t: float) -> float:
        z = torch.from_numpy(np.asarray(logits, np.float64)) / math.exp(log_t)
        return float(nn.functional.cross_entropy(z, torch.from_numpy(labels)))

    return math.exp(minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded").x)


def _epoch(
    train: Sequence[Exchange], hate: Hate, toxic: Sequence[str], settings: PairJudgeSettings, number: int
) -> list[PairExample]:
    texts, seed = own_texts("train"), f"{settings.seed}, epoch {number}"
    ours = made_up(texts, settings.made_up, seed)
    theirs = answered(hate, train, texts, settings.answered, seed)
    rng = random.Random(seed)
    everything = [*train, *ours, *theirs]
    examples = draw(everything, texts, seed, hate)
    # With more off-topic pairs alone, the judge would learn to say off topic whenever it is in doubt.
    for again in range(settings.controls // 2):
        examples += draw(everything, texts, f"{seed}, again {again}", hate)
    examples += controls(everything, texts, seed, settings.controls, toxic)
    return [thinned(example, rng) if rng.random() < settings.thinned else example for example in examples]


def _published(sources: Sequence[str], known: Collection[str]) -> tuple[Hate, list[Source]]:
    """Hateful texts of the data sets' training parts by the target that they name, and where they are from.

    None of them is among the normalised texts ``known``. Raises DataError for a source that has none.
    """

    def fits(text: LabelledText) -> bool:
        return text.labels.get("hate", 0.0) >= 0.5 and target_of(text.text) is not None

    texts, found = _taken(sources, fits, known, "hate: {} has no hateful text that names a group; expected toxigen")
    hate: dict[str, list[str]] = {}
    for text in texts:
        hate.setdefault(str(target_of(text)), []).append(text)
    return hate, found


def _without_group(sources: Sequence[str], known: Collection[str]) -> tuple[list[str], list[Source]]:
    """Toxic texts of the data sets' training parts that name no group, none of them ``known``, and where they are from.

    Raises DataError for a source that has none.
    """

    def fits(text: LabelledText) -> bool:
        toxic = text.labels.get("toxicity", 0.0) >= 0.5
        return toxic and not names_group(text.text) and len(text.text.split()) <= _LONGEST_PROMPT

    return _taken(sources, fits, known, "toxic: {} has no toxic text that names no group; expected toxic_spans")


def _taken(
    sources: Sequence[str], fits: Callable[[LabelledText], bool], known: Collection[str], lacking: str
) -> tuple[list[str], list[Source]]:
    """The training texts that fit and aren't ``known``, and their sources; a source with none raises ``lacking``."""
    texts: list[str] = []
    records: list[Source] = []
    for source in sources:
        before = len(records)
        for found in load_labelled(source):
            mine = [text.text for text in found.training if fits(text) and normalised(text.text) not in known]
            if mine:
                texts += mine
                records.append(Source(found.kind, found.sha256, found.licence or "not stated", len(mine)))
        if len(records) == before:
            raise DataError(f"{lacking.format(source)} or the like")
    return texts, records


def _begin_with(model: Any, start: str) -> str:
    """Put the adapter and head of the judge ``start`` into ``model``, and return its revision.

    Raises ModelError where they don't fit.
    """
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    revision = load_pair_judge(start).revision  # an error here names what is damaged or no judge of pairs
    try:
        found = set_peft_model_state_dict(model, load_file(folder_of(start) / "adapter_model.safetensors"))
    except RuntimeError as error:
        raise ModelError(f"start: {start} has an adapter of another shape ({str(error)[:160]})") from None
    # The encoder's own weights are "missing" in an adapter.
    missing = [name for name in found.missing_keys if "lora_" in name or "modules_to_save" in name]
    if missing or found.unexpected_keys:
        raise ModelError(
            f"start: {start} doesn't fit lora.r and lora.targets: {[*missing, *found.unexpected_keys][:3]}"
        )
    return revision


def _rows(tokenizer: Any, examples: Sequence[PairExample], settings: PairJudgeSettings) -> list[dict[str, Any]]:
    return [
        {
            **encode_pair(tokenizer, example.prompt, example.answer, settings.max_length),
            "labels": PAIR_LABELS.index(example.label),
        }
        for example in examples
    ]


def _model(settings: PairJudgeSettings, source: str, revision: str | None) -> Any:
    from peft import LoraConfig, TaskType, get_peft_model

    model = with_fresh_head(source, revision, PAIR_LABELS, "single_label_classification")
    return get_peft_model(
        model,
        LoraConfig(
            task_type=TaskType.SEQ_CLS,
            r=settings.lora.r,
            lora_alpha=settings.lora.alpha,  # type: ignore[arg-type]
            lora_dropout=settings.lora.dropout,
            target_modules=settings.lora.targets,
            modules_to_save=["classifier"],
        ),
    )


def _save(
    settings: PairJudgeSettings,
    out: Path,
    model: Any,
    revision: str | None,
    temperature: float,
    sources: Sequence[Source],
    started_from: str | None,
) -> None:
    """The adapter, ``judge.json`` and its card."""
    save_adapter(model, settings.encoder, out)
    record = JudgeRecord(
        kind="pairs",
        labels=PAIR_LABELS,
        main=PAIR_LABELS[0],
        problem_type="single_label_classification",
        encoder=public_name(settings.encoder),
        encoder_revision=revision,
        max_length=settings.max_length,
        temperature=temperature,
        data=tuple(sources),
        command=_command(settings),
        started_from=started_from,
        seed=settings.seed,
        limits=_LIMITS,
    )
    save_record(out, record)


def _command(settings: PairJudgeSettings) -> str:
    return command(["train-pairs"], flatten(settings.model_dump()), flatten(PairJudgeSettings().model_dump()))


def _dialogues_source(loaded: DialogueSet, n_exchanges: int) -> Source:
    texts = [turn.text for dialogue in loaded.dialogues for turn in dialogue.turns]
    licence = _LICENCES.get(loaded.dialogues[0].source, "not stated")
    return Source(Path(loaded.source).name, _sha256_of(texts), licence, 2 * n_exchanges)


def _our_lines() -> Source:
    lines = own_texts("train")
    texts = [*lines.refusals, *lines.agreements, *lines.retorts, *lines.objections, *lines.chatter, *lines.claims]
    texts += [text for exchange in own_exchanges() for text in (exchange.hate, exchange.counter)]
    return Source("our own lines", _sha256_of(texts), "Apache-2.0, our own", len(texts))


def _sha256_of(texts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()
