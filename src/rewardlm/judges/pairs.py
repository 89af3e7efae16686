"""Train the judge of (prompt, answer) pairs: an encoder that reads both, a LoRA adapter, a softmax over four classes.

Where its examples come from is in ``pair_data``; what it is worth, in ``pair_evaluation``.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import shlex
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback

from rewardlm.config import flatten
from rewardlm.data.dialogues import load_dialogues, normalised
from rewardlm.errors import DataError, ModelError
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
from rewardlm.judges.pair_evaluation import add_figures, evaluate_pairs, held_out_controls, write_record
from rewardlm.judges.settings import PairJudgeSettings
from rewardlm.judges.texts import load_labelled
from rewardlm.judges.train import _checkpoints, _Watch, head_of
from rewardlm.models.load import resolve_device, resolve_dtype
from rewardlm.runs import Run, alone
from rewardlm.scoring.encoder import locate_encoder, public_name
from rewardlm.scoring.pairs import PAIR_LABELS, encode_pair, folder_of, load_pair_judge
from rewardlm.training.checkpoints import newest_whole
from rewardlm.types import DialogueSet

Report = Callable[[int, int, Any], None]
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
_LIMITS = [
    "English only.",
    "It reads the prompt's last turn and the answer, nothing before them.",
    "It judges by the words of both whether they belong together; it knows no facts, so a false or absurd answer that "
    "speaks up for the group counts as a counter-narrative.",
    "How it reads irony, and hate in a polite tone, has not been measured.",
    "Abuse of the prompt's writer is called agreement: it opposes the hate, and is no counter-narrative.",
]


def train_pair_judge(
    settings: PairJudgeSettings, out: Path, *, report: Report | None = None, say: Say | None = None
) -> Run:
    """Train a pair judge in ``out``; a finished run is returned as it is, a killed one goes on from its last epoch.

    ``out`` itself is the judge then, for ``measure counter_narrative=OUT``. Raises DataError for dialogues that leave
    nothing to train on or to hold out, ModelError for an encoder that can't be loaded, TrainingError for NaN, and
    RunError where another command writes to ``out``.
    """
    with alone(out):
        return _train(settings, out, report, say)


def _train(settings: PairJudgeSettings, out: Path, report: Report | None, say: Say | None) -> Run:
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
        raise ModelError(f"{settings.encoder}'s head has no bias, as a decoder's: choose an encoder of BERT's family")
    validation = _rows(tokenizer, unseen, settings)
    trainer = Trainer(
        model=model,
        args=_arguments(settings, run, len(epochs[0])),
        train_dataset=_rows(tokenizer, [example for epoch in epochs for example in epoch], settings),
        eval_dataset=validation,
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[_Watch(run, report)],
    )
    trainer.remove_callback(PrinterCallback)
    resume = newest_whole(_checkpoints(run))
    run.forget_after(int(resume.name.rpartition("-")[2]) if resume else 0)
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)

    predicted = trainer.predict(validation)  # in an order of its own, by length
    model = trainer.accelerator.unwrap_model(trainer.model).to("cpu").float().eval()
    temperature = fit_temperature(predicted.predictions, predicted.label_ids)
    head = head_of(model)
    with torch.no_grad():
        head.weight.div_(temperature)
        head.bias.div_(temperature)
    sources = [_source(loaded, len(train)), _our_lines(), *hate_sources, *toxic_sources]
    _save(run, settings, model, revision, temperature, sources, started_from)
    # Of the judge as it was saved, rounded to half precision.
    judge = load_pair_judge(str(out), device=str(resolve_device(settings.device)))
    add_figures(out, f"{Path(settings.dialogues).name}, held out", evaluate_pairs(judge, unseen, tests))
    run.update(status="finished", steps=trainer.state.global_step)
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
    # Many more that are off topic alone would teach it to say so whenever it is in doubt.
    for again in range(settings.controls // 2):
        examples += draw(everything, texts, f"{seed}, again {again}", hate)
    examples += controls(everything, texts, seed, settings.controls, toxic)
    return [thinned(example, rng) if rng.random() < settings.thinned else example for example in examples]


def _published(sources: Sequence[str], known: Collection[str]) -> tuple[Hate, list[dict[str, Any]]]:
    """Hateful texts of the data sets' training parts by the target that they name, and records of where they are from.

    None of them is among the normalised texts ``known``. Raises DataError for a source that has none.
    """
    hate: dict[str, list[str]] = {}
    records: list[dict[str, Any]] = []
    for source in sources:
        before = len(records)
        for found in load_labelled(source):
            taken = 0
            for text in found.training:
                target = target_of(text.text) if text.labels.get("hate", 0.0) >= 0.5 else None
                if target is not None and normalised(text.text) not in known:
                    hate.setdefault(target, []).append(text.text)
                    taken += 1
            if taken:
                licence = found.licence or "not stated"
                records.append({"source": found.kind, "licence": licence, "sha256": found.sha256, "texts": taken})
        if len(records) == before:
            raise DataError(f"hate: {source} has no hateful text that names a group; expected toxigen or the like")
    return hate, records


def _without_group(sources: Sequence[str], known: Collection[str]) -> tuple[list[str], list[dict[str, Any]]]:
    """Toxic texts of the data sets' training parts that name no group, none of them ``known``, and their records.

    Raises DataError for a source that has none.
    """
    texts: list[str] = []
    records: list[dict[str, Any]] = []
    for source in sources:
        before = len(records)
        for found in load_labelled(source):
            mine = [
                text.text
                for text in found.training
                if text.labels.get("toxicity", 0.0) >= 0.5
                and not names_group(text.text)
                and len(text.text.split()) <= _LONGEST_PROMPT
                and normalised(text.text) not in known
            ]
            if mine:
                texts += mine
                licence = found.licence or "not stated"
                records.append({"source": found.kind, "licence": licence, "sha256": found.sha256, "texts": len(mine)})
        if len(records) == before:
            raise DataError(f"toxic: {source} has no toxic text that names no group; expected toxic_spans or the like")
    return texts, records


def _begin_with(model: Any, start: str) -> str:
    """Put the adapter and head of the judge ``start`` into ``model``, and return its revision.

    Raises ModelError where they don't fit.
    """
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    revision = load_pair_judge(start).revision  # what is no judge of pairs, or damaged, is named here
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
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # the head that it would call missing is the one that we train
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            source,
            revision=revision,
            num_labels=len(PAIR_LABELS),
            id2label=dict(enumerate(PAIR_LABELS)),
            label2id={name: number for number, name in enumerate(PAIR_LABELS)},
            problem_type="single_label_classification",
            dtype=torch.float32,
        )
    finally:
        logging.set_verbosity(verbosity)
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


def _arguments(settings: PairJudgeSettings, run: Run, rows_an_epoch: int) -> TrainingArguments:
    """Every row is an example that was drawn for its epoch, so the trainer passes over all of them once."""
    device = resolve_device(settings.device)
    every = math.ceil(rows_an_epoch / settings.batch_size)
    return TrainingArguments(
        output_dir=str(run.path / "checkpoints"),
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=64,
        num_train_epochs=1,
        train_sampling_strategy="group_by_length",
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        max_grad_norm=1.0,
        bf16=resolve_dtype(settings.precision, device) == torch.bfloat16,
        optim="adamw_torch_fused",
        use_cpu=device.type == "cpu",
        logging_steps=10,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=settings.seed,
        data_seed=settings.seed,
    )


def _save(
    run: Run,
    settings: PairJudgeSettings,
    model: Any,
    revision: str | None,
    temperature: float,
    sources: Sequence[dict[str, Any]],
    started_from: str | None,
) -> None:
    """The adapter in half precision, whose rounding is far below the noise of its examples; judge.json and the card."""
    encoder = public_name(settings.encoder)
    for config in model.peft_config.values():
        config.base_model_name_or_path = encoder
        config.revision = None
    model.half()
    model.save_pretrained(str(run.path), safe_serialization=True, save_embedding_layers=False)
    write_record(
        run.path,
        {
            "kind": "pairs",
            "labels": list(PAIR_LABELS),
            "main": PAIR_LABELS[0],
            "problem_type": "single_label_classification",
            "encoder": encoder,
            "encoder_revision": revision,
            "max_length": settings.max_length,
            "calibration": {},
            "temperature": temperature,
            "data": list(sources),
            "command": command(settings),
            **({} if started_from is None else {"started_from": started_from}),
            "seed": settings.seed,
            "limits": _LIMITS,
        },
    )


def command(settings: PairJudgeSettings) -> str:
    """The command line that trains this judge again: what differs from the defaults is said."""
    mine, theirs = flatten(settings.model_dump()), flatten(PairJudgeSettings().model_dump())
    changed = {key: value for key, value in mine.items() if key not in FREE_SETTINGS and value != theirs[key]}
    words = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in changed.items()]
    return shlex.join(["rewardlm", "judge", "train-pairs", *words, "--out", "DIR"])


def _source(loaded: DialogueSet, n_exchanges: int) -> dict[str, Any]:
    texts = [turn.text for dialogue in loaded.dialogues for turn in dialogue.turns]
    licence = _LICENCES.get(loaded.dialogues[0].source, "not stated")
    return _record(Path(loaded.source).name, licence, texts, 2 * n_exchanges)


def _our_lines() -> dict[str, Any]:
    lines = own_texts("train")
    texts = [*lines.refusals, *lines.agreements, *lines.retorts, *lines.objections, *lines.chatter, *lines.claims]
    texts += [text for exchange in own_exchanges() for text in (exchange.hate, exchange.counter)]
    return _record("our own lines", "Apache-2.0, our own", texts, len(texts))


def _record(source: str, licence: str, texts: Sequence[str], trained_on: int) -> dict[str, Any]:
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    return {"source": source, "licence": licence, "sha256": digest, "texts": trained_on}
