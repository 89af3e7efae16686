"""Train a judge: an encoder with a sigmoid for each label, on texts whose sources judged different labels.

A label that a source says nothing of is masked out of the loss, so a data set of hate without swear words and
Perspective's scores of swear words teach one network. Soft targets are shares of annotators or Perspective's
probabilities; hard ones are 0 and 1. Preference pairs teach the difference of two texts' logits (Bradley–Terry).
The result is a standard sequence classifier, or a LoRA adapter of one, with a card.
"""

from __future__ import annotations

import dataclasses
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid
from torch.utils.data import Sampler
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Conv1D,
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_pt_utils import get_length_grouped_indices

from rewardlm.config import data_folder
from rewardlm.data.split import Share, wording
from rewardlm.errors import DataError, ModelError, TrainingError
from rewardlm.judges.calibrate import Calibration, fit, fold, weigh
from rewardlm.judges.card import save_judge
from rewardlm.judges.distil import distil, load_judges, read, records, refuse_others
from rewardlm.judges.frozen import FrozenLayers, frozen_names, pad_states
from rewardlm.judges.misspell import misspell
from rewardlm.judges.preferences import PreferencePair, is_preference_file, load_preferences
from rewardlm.judges.regroup import regroup
from rewardlm.judges.settings import JudgeTrainSettings
from rewardlm.judges.suites import load_suite
from rewardlm.judges.texts import FILES, READINGS, LabelledSet, LabelledText, load_labelled, measuring_prompts
from rewardlm.models.generate import stream_seed
from rewardlm.models.load import resolve_device, resolve_dtype
from rewardlm.runs import Run, alone, peak_rss_mb
from rewardlm.scoring.encoder import locate_encoder
from rewardlm.training.checkpoints import newest_whole, write_manifest

if TYPE_CHECKING:
    from rewardlm.scoring.scorer import Scorer

Report = Callable[[int, int, dict[str, Any]], None]
Say = Callable[[str], None]

# What doesn't change the result.
FREE_SETTINGS = ("device",)


@dataclass(frozen=True, slots=True)
class _Row:
    """A sample: tokens of a text with targets and weights of every output (NaN: unknown), or of two to compare.

    ``states`` are what frozen layers say of them, where there are such.
    """

    input_ids: list[int]
    targets: np.ndarray[Any, np.dtype[np.float32]]
    weights: np.ndarray[Any, np.dtype[np.float32]]
    rejected_ids: list[int] | None = None
    states: Tensor | None = None
    rejected_states: Tensor | None = None

    @property
    def length(self) -> int:
        return max(len(self.input_ids), len(self.rejected_ids or ()))


@dataclass(frozen=True, slots=True)
class Corpus:
    """What a judge learns from, what stops it, what calibrates it, and what each came from.

    ``calibration`` is what is held out for it, and the validation part: where others are distilled into the judge, who
    may have learnt from that, only of sources that hold nothing out. ``unseen`` are the wordings that it must not
    learn: held out, excluded, those that stop it, prompts that models are measured on, and another judge's share.
    """

    train: list[LabelledText]
    validation: list[LabelledText]
    calibration: list[LabelledText]
    preferences: list[PreferencePair]
    sources: list[dict[str, Any]]
    unseen: frozenset[str]

    @property
    def texts(self) -> set[str]:
        """All texts that the judge reads as they are, to learn, to stop or to calibrate."""
        labelled = {text.text for text in [*self.train, *self.validation, *self.calibration]}
        return labelled | {text for pair in self.preferences for text in (pair.chosen, pair.rejected)}


def train_judge(
    settings: JudgeTrainSettings, out: Path, *, report: Report | None = None, say: Say | None = None
) -> Run:
    """Train a judge in ``out``; a finished run is returned as it is, a killed one goes on from its last evaluation.

    ``out`` itself is the judge then: ``--scorer OUT`` loads it. Raises DataError for unusable sources, ModelError for
    an encoder that can't be loaded, TrainingError for NaN, and RunError where another command writes to ``out``.
    """
    with alone(out):
        return _train(settings, out, report, say)


def _train(settings: JudgeTrainSettings, out: Path, report: Report | None, say: Say | None) -> Run:
    run = Run.start(
        out,
        kind="judge",
        label=out.name,
        settings=settings.model_dump(mode="json"),
        free=FREE_SETTINGS,
        filled={
            "regrouped": 0.0,
            "keep": "best",
            "distil": [],
            "distil_share": 0.9,
            "share": "all",
            "layers": None,
            "frozen": 0,
        },
    )
    judges = load_judges(settings.distil, settings.labels, str(resolve_device(settings.device)))
    distilled = records(judges)
    teacher = _load_teacher(settings)
    refuse_others(run, distilled)
    if run.finished:
        return run
    run.update(distilled=distilled)
    corpus = load_corpus(settings)
    if say is not None:
        say(_summary(corpus))
    if judges and not corpus.train:
        raise DataError(
            f"distil: {', '.join(settings.data)} holds preference pairs alone; expected texts to teach with"
        )
    corpus = dataclasses.replace(corpus, train=distil(corpus.train, judges, settings.distil_share, say))
    filled = _teach(settings, teacher, corpus.train, say)

    source, revision = locate_encoder(settings.encoder)
    set_seed(settings.seed)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
        model = _model(settings, source, revision, _padding(tokenizer))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"can't load the encoder {settings.encoder} ({' '.join(str(error).split())[:160]}): expected minilm, a hub "
            "id, or a folder with config.json, tokenizer and safetensors"
        ) from error
    device = resolve_device(settings.device)
    train_rows = [
        *_rows(tokenizer, corpus.train, settings, filled),
        *_rows(tokenizer, _misspelt(settings, corpus.train), settings),
        *_rows(tokenizer, _regrouped(settings, corpus), settings),
        *_pair_rows(tokenizer, corpus.preferences, settings),
    ]
    validation_rows = _rows(tokenizer, corpus.validation, settings)
    precision = resolve_dtype(settings.precision, device)
    frozen = FrozenLayers(model, settings.frozen, precision) if settings.frozen else None
    if frozen is not None:
        if say is not None:
            say(f"the lowest {settings.frozen} layers read {len(train_rows) + len(validation_rows):,} texts, once")
        train_rows, validation_rows = (
            _with_states(frozen, rows, _padding(tokenizer)) for rows in (train_rows, validation_rows)
        )
        frozen.take_out()
    chooses = bool(validation_rows) and settings.keep == "best"
    trainer = _Trainer(
        model=model,
        args=_arguments(settings, run, len(train_rows), bool(validation_rows), chooses, device),
        train_dataset=train_rows,
        eval_dataset=validation_rows or None,
        data_collator=_Collator(_padding(tokenizer)),
        callbacks=[_Watch(run, report), *([EarlyStoppingCallback(settings.patience)] if chooses else [])],
    )
    trainer.main = settings.labels.index(settings.main)
    trainer.frozen = frozen
    trainer.order = _Order([row.length for row in train_rows], settings.batch_size, settings.seed)
    trainer.remove_callback(PrinterCallback)
    resume = newest_whole(_checkpoints(run))
    run.forget_after(int(resume.name.rpartition("-")[2]) if resume else 0)
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)

    model = trainer.accelerator.unwrap_model(trainer.model)
    if frozen is not None:
        frozen.restore()
    model.to("cpu").float().eval()
    calibration = _calibrate(settings, model, tokenizer, corpus.calibration)
    run.update(
        sources=corpus.sources,
        encoder={"name": settings.encoder, "revision": revision},
        steps=trainer.state.global_step,
        best_step=trainer.state.best_global_step if chooses else trainer.state.global_step,
        validation_loss=trainer.state.best_metric if chooses else _last_loss(trainer),
    )
    save_judge(
        out,
        model=model,
        tokenizer=tokenizer,
        settings=settings,
        revision=revision,
        calibration=calibration,
        sources=corpus.sources,
        distilled=distilled,
        teacher=None if teacher is None else records([teacher])[0],
        read=corpus.texts,
    )
    run.update(status="finished")
    return run


def load_corpus(settings: JudgeTrainSettings) -> Corpus:
    """The texts of all sources: neither held out nor excluded, each once, with a part for validation.

    Near duplicates are one text (``data.split.wording``). A text that two sources judge has both judgements; where both
    judge one label, the first source's stands. Prompts that models are measured on are left out, and so are the
    texts of another judge's ``share``. Raises DataError where nothing is left.
    """
    excluded = measuring_prompts()
    for source in settings.exclude:
        excluded |= {wording(text.text) for text in load_suite(source).texts}
    sets: list[LabelledSet] = []
    preferences: list[PreferencePair] = []
    sources: list[dict[str, Any]] = []
    for source in settings.data:
        if is_preference_file(source):
            pairs, record = load_preferences(source)
            kept = [pair for pair in pairs if not {wording(pair.chosen), wording(pair.rejected)} & excluded]
            preferences += kept
            sources.append({**record, "texts": 2 * len(kept)})
        else:
            sets += load_labelled(source)
    if settings.share != "all":
        excluded |= _of_others(settings.share, sets)
    forbidden = excluded | {wording(text.text) for found in sets for text in found.held_out}
    merged: dict[str, LabelledText] = {}
    came_from: dict[str, int] = {}
    for number, found in enumerate(sets):
        for text in found.training:
            labels = {label: value for label, value in text.labels.items() if label in settings.labels}
            key = wording(text.text)
            if key in forbidden or not labels:
                continue
            before = merged.get(key)
            if before is not None:
                labels, text = {**labels, **before.labels}, before
            merged[key] = dataclasses.replace(text, labels=labels)
            came_from.setdefault(key, number)
    texts = list(merged.values())
    draw = random.Random(settings.seed)
    draw.shuffle(texts)
    counts: Counter[str] = Counter()
    within_limits = []
    for text in texts:
        counts[text.source] += 1
        if counts[text.source] <= settings.limits.get(text.source, len(texts)):
            within_limits.append(text)
    texts = within_limits[: settings.limit]
    n_validation = round(settings.validation * len(texts))
    if not preferences and (n_validation == 0 or n_validation == len(texts)):
        raise DataError(
            f"{', '.join(settings.data)}: {len(texts)} texts with a label are left to train on, and validation needs "
            f"{settings.validation:.0%} of them: give more data"
        )
    used = Counter(came_from[wording(text.text)] for text in texts)
    sources = [
        {"kind": found.kind, "sha256": found.sha256, "licence": found.licence, "texts": used[number]}
        for number, found in enumerate(sets)
        if used[number]
    ] + sources
    validation = texts[:n_validation]
    unseen = frozenset(forbidden | {wording(text.text) for text in validation})
    calibration = [text for found in sets for text in found.calibration if wording(text.text) not in excluded]
    draw.shuffle(calibration)
    covered = {text.source for text in calibration} if settings.distil else set()
    calibration = calibration[: settings.limit] + [text for text in validation if text.source not in covered]
    return Corpus(texts[n_validation:], validation, calibration, preferences, sources, unseen)


def _of_others(share: Share, sets: Sequence[LabelledSet]) -> set[str]:
    """The wordings that a judge of this share must not read: all that another judge may read or is evaluated on.

    The published sets that are on this machine count, too, if this judge doesn't learn from them: two sets may hold the
    same text, and one that is made of a row of each share is read by nobody.
    """
    folder = data_folder()
    here = [
        name
        for name, files in {**FILES, **READINGS}.items()
        if folder is not None and all((folder / file).is_file() for file in files)
    ]
    known = [*sets, *(found for name in here for found in load_labelled(name))]
    return {
        wording(text.text)
        for found in known
        for text in found.texts
        if text.share != share or (text.held_out and not text.calibrates)
    }


def masked_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Binary cross-entropy, weighted, of what is known: the sum over known entries by the number of rows.

    Args:
        logits: Float[B, L].
        targets: Float[B, L], probabilities; NaN where nobody judged.
        weights: Float[B, L].
    """
    known = ~targets.isnan()
    loss = binary_cross_entropy_with_logits(logits, targets.nan_to_num(0.0), reduction="none")
    return (loss * weights * known).sum() / len(logits)


def preference_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """-log σ(z_rejected - z_chosen), averaged: the rejected text is the more toxic one (Bradley and Terry 1952).

    Args:
        chosen, rejected: Float[B], logits of P(toxic).
    """
    return -logsigmoid(rejected - chosen).mean()


def balance(texts: Sequence[LabelledText]) -> dict[str, float]:
    """A weight for every source: its share, were all sources' shares taken to the power of one half.

    So that 20,000 tweets don't outvote 3,000 scored sentences; the mean weight of a text is 1.
    """
    counts = Counter(text.source for text in texts)
    roots = {source: math.sqrt(count) for source, count in counts.items()}
    scale = sum(counts.values()) / sum(roots.values())
    return {source: roots[source] * scale / count for source, count in counts.items()}


def _summary(corpus: Corpus) -> str:
    counts = Counter(text.source for text in corpus.train)
    named = ", ".join(f"{source} {count:,}" for source, count in counts.most_common())
    sentence = f"{len(corpus.train):,} texts to train on ({named}), {len(corpus.validation):,} to validate"
    if corpus.preferences:
        sentence += f", {len(corpus.preferences):,} preference pairs"
    return sentence


def _misspelt(settings: JudgeTrainSettings, texts: Sequence[LabelledText]) -> list[LabelledText]:
    """A share of the texts in another spelling: they mean what they meant. A word judge's reading of them would not."""
    draw = random.Random(stream_seed("misspell", settings.seed))
    chosen = draw.sample(list(texts), round(settings.misspelt * len(texts)))
    return [dataclasses.replace(text, text=misspell(text.text, draw)) for text in chosen]


def _regrouped(settings: JudgeTrainSettings, corpus: Corpus) -> list[LabelledText]:
    """A share of the texts that name a group of people, about others: they are as hateful, or as harmless."""
    if settings.regrouped == 0:
        return []
    draw = random.Random(stream_seed("regroup", settings.seed))
    # Made from a template, a text about others may be one that there is.
    known = {wording(text.text) for text in corpus.train} | corpus.unseen
    changed = []
    for text in corpus.train:
        about_others = regroup(text.text, draw)
        if wording(about_others) not in known:
            changed.append(dataclasses.replace(text, text=about_others))
    return draw.sample(changed, round(settings.regrouped * len(changed)))


def _load_teacher(settings: JudgeTrainSettings) -> Scorer | None:
    """The judge ``teacher``. Raises DataError where it has none of the labels."""
    if settings.teacher is None:
        return None
    from rewardlm.scoring.scorer import load_scorer

    teacher = load_scorer(settings.teacher, device=str(resolve_device(settings.device)))
    if not set(teacher.labels) & set(settings.labels):
        raise DataError(
            f"teacher {settings.teacher} has the labels {', '.join(teacher.labels)}; expected some of "
            f"{', '.join(settings.labels)}"
        )
    return teacher


def _teach(
    settings: JudgeTrainSettings, teacher: Scorer | None, texts: Sequence[LabelledText], say: Say | None
) -> dict[str, dict[str, float]]:
    """By text, what the teacher says of the labels that its source left open. Raises ScorerError if it can't.

    What a complete text lacks stays open.
    """
    if teacher is None:
        return {}
    shared = [label for label in teacher.labels if label in settings.labels]
    texts = [text for text in texts if not text.complete]
    return {
        text.text: {
            label: verdict.values[label] for label in shared if label in verdict.values and label not in text.labels
        }
        for text, verdict in zip(texts, read(teacher, texts, shared, say), strict=True)
    }


def _model(settings: JudgeTrainSettings, source: str, revision: str | None, padding: int) -> Any:
    """The encoder with a fresh head, an output a label; all weights trainable, or an adapter."""
    # transformers reports the head that is new as missing weights: here it is meant to be.
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        lowest = {} if settings.layers is None else {"num_hidden_layers": settings.layers}
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            source,
            **lowest,
            revision=revision,
            num_labels=len(settings.labels),
            id2label=dict(enumerate(settings.labels)),
            label2id={name: number for number, name in enumerate(settings.labels)},
            problem_type="multi_label_classification",
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    finally:
        logging.set_verbosity(verbosity)
    # A decoder finds a text's last token by it.
    model.config.pad_token_id = padding
    if settings.calibration != "none":
        head_of(model)
    return model if settings.tuning == "full" else _with_adapter(settings, model, loading)


def _with_adapter(settings: JudgeTrainSettings, model: Any, loading: Mapping[str, Any]) -> Any:
    """``model`` with a fresh adapter on it. Raises ModelError where ``lora.targets`` name no layer for one."""
    from peft import LoraConfig, TaskType, get_peft_model

    fresh = _fresh(model, {*loading["missing_keys"], *(name for name, *_ in loading["mismatched_keys"])})
    still = frozen_names(model, settings.frozen)
    targets = settings.lora.targets
    if targets == "all-linear":
        # Of the encoder's layers; what is fresh trains as a whole, and a pooler that isn't goes with the layers.
        targets = sorted(
            {
                name.rpartition(".")[2]
                for name, module in model.named_modules()
                if isinstance(module, nn.Linear | Conv1D) and not _within(name, fresh)
            }
        )
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=settings.lora.r,
        lora_alpha=settings.lora.alpha,  # type: ignore[arg-type]
        lora_dropout=settings.lora.dropout,
        target_modules=targets,
        exclude_modules=[name for name, _ in model.named_modules() if _within(name, [*fresh, *still])],
        modules_to_save=fresh,
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(
            f"lora.targets {settings.lora.targets!r} on {settings.encoder}: {' '.join(str(error).split())[:160]}; name "
            "linear layers of the encoder, or set tuning=full"
        ) from error


def _fresh(model: Any, random: set[str]) -> list[str]:
    """The modules that train as a whole: all that a classifier has above its base model, and in that what is random.

    ``random`` are the names of the weights that the encoder's files lack.
    """
    above = [
        name
        for name, module in model.named_children()
        if name != model.base_model_prefix and any(True for _ in module.parameters())
    ]
    found = list(above)
    for name, module in model.named_modules():
        weights = [f"{name}.{key}" for key, _ in module.named_parameters()]
        if name and weights and random.issuperset(weights) and not _within(name, found):
            found.append(name)
    return found


def _within(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _rows(
    tokenizer: Any,
    texts: Sequence[LabelledText],
    settings: JudgeTrainSettings,
    filled: Mapping[str, Mapping[str, float]] | None = None,
) -> list[_Row]:
    by_source = balance(texts) if settings.balance == "source" and texts else {}
    encoded = encode(tokenizer, [text.text for text in texts], settings.max_length)
    rows = []
    for text, ids in zip(texts, encoded, strict=True):
        taught = (filled or {}).get(text.text, {})
        weight = by_source.get(text.source, 1.0) * settings.weights.get(text.source, 1.0)
        targets = [text.labels.get(label, taught.get(label, math.nan)) for label in settings.labels]
        weights = [weight * (1.0 if label in text.labels else settings.teacher_weight) for label in settings.labels]
        rows.append(_Row(ids, np.asarray(targets, np.float32), np.asarray(weights, np.float32)))
    return rows


def _pair_rows(tokenizer: Any, pairs: Sequence[PreferencePair], settings: JudgeTrainSettings) -> list[_Row]:
    chosen = encode(tokenizer, [pair.chosen for pair in pairs], settings.max_length)
    rejected = encode(tokenizer, [pair.rejected for pair in pairs], settings.max_length)
    unknown = np.full(len(settings.labels), math.nan, np.float32)
    return [_Row(better, unknown, np.ones_like(unknown), worse) for better, worse in zip(chosen, rejected, strict=True)]


def _with_states(frozen: FrozenLayers, rows: Sequence[_Row], padding: int) -> list[_Row]:
    """The rows with what the frozen layers say of their texts."""
    paired = [row for row in rows if row.rejected_ids is not None]
    states = frozen.states([row.input_ids for row in rows], padding)
    rejected = iter(frozen.states([row.rejected_ids or [] for row in paired], padding))
    return [
        dataclasses.replace(row, states=own, rejected_states=None if row.rejected_ids is None else next(rejected))
        for row, own in zip(rows, states, strict=True)
    ]


def encode(tokenizer: Any, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """Token ids with the encoder's own special tokens; those that a text spells out ("[SEP]") are plain text."""
    if not texts:
        return []
    encoded = tokenizer(
        list(texts), truncation=True, max_length=max_length, split_special_tokens=True, padding=False, verbose=False
    )
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def _arguments(
    settings: JudgeTrainSettings, run: Run, n_rows: int, validates: bool, chooses: bool, device: torch.device
) -> TrainingArguments:
    steps = math.ceil(n_rows / settings.batch_size)
    every = max(1, steps // settings.evaluations)
    precision = resolve_dtype(settings.precision, device)
    return TrainingArguments(
        output_dir=str(run.path / "checkpoints"),
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=64,
        num_train_epochs=settings.epochs,
        learning_rate=settings.rate,
        lr_scheduler_type="linear",
        warmup_steps=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        max_grad_norm=1.0,
        bf16=precision == torch.bfloat16,
        optim="adamw_torch_fused",
        use_cpu=device.type == "cpu",
        logging_steps=10,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if validates else "no",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=chooses,
        metric_for_best_model="eval_loss" if chooses else None,
        greater_is_better=False if chooses else None,
        label_names=["targets"],
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=settings.seed,
        data_seed=settings.seed,
    )


def _last_loss(trainer: Trainer) -> float | None:
    """The validation loss of the newest evaluation, None where nothing validates."""
    losses: list[float] = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    return losses[-1] if losses else None


def _checkpoints(run: Run) -> list[Path]:
    folders = (run.path / "checkpoints").glob("checkpoint-*")
    return sorted(folders, key=lambda path: int(path.name.rpartition("-")[2]))


def head_of(model: Any) -> nn.Linear:
    """The last layer of a sequence classifier, which peft may have wrapped: the last one with an output a label.

    Raises TrainingError where there is none.
    """
    labels = model.config.num_labels
    heads = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module.out_features == labels
        and not {"original_module", "lora_A", "lora_B"} & set(name.split("."))
    ]
    if not heads:
        raise TrainingError(
            f"{type(model).__name__} has no linear layer with {labels} outputs: choose another encoder, or "
            "calibration=none"
        )
    return heads[-1]


@torch.inference_mode()
def logits_of(model: Any, tokenizer: Any, texts: Sequence[str], max_length: int) -> np.ndarray[Any, Any]:
    """Float32[N, L], in the texts' order; in batches of like length."""
    ids = encode(tokenizer, texts, max_length)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    out = np.zeros((len(ids), model.config.num_labels), np.float32)
    for start in range(0, len(order), 64):
        batch = order[start : start + 64]
        inputs, mask = _pad([ids[i] for i in batch], _padding(tokenizer))
        out[batch] = model(input_ids=inputs, attention_mask=mask).logits.float().numpy()
    return out


def _calibrate(
    settings: JudgeTrainSettings, model: Any, tokenizer: Any, texts: Sequence[LabelledText]
) -> dict[str, Calibration]:
    """Fit each label's calibration on ``texts``; what is linear in the logit goes into the head at once."""
    if settings.calibration == "none" or not texts:
        return {}
    logits = logits_of(model, tokenizer, [text.text for text in texts], settings.max_length)
    targets = np.asarray([[text.labels.get(label, math.nan) for label in settings.labels] for text in texts])
    sources = np.asarray([text.source for text in texts])
    head = head_of(model)
    shift = head.bias is not None  # a decoder's head has no place for one
    fitted: dict[str, Calibration] = {}
    for column, label in enumerate(settings.labels):
        known = ~np.isnan(targets[:, column])
        weights = weigh(sources[known].tolist(), targets[known, column], evenly=settings.balance == "source")
        found = fit(settings.calibration, logits[known, column], targets[known, column], weights, shift=shift)
        if found is not None:
            fitted[label] = found
    fold(head, settings.labels, fitted)
    return fitted


def _padding(tokenizer: Any) -> int:
    """The token that rows are filled up with: the last one's where a decoder's tokenizer has none of its own."""
    padding: int | None = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    if padding is None:
        raise ModelError("the encoder's tokenizer has neither a padding token nor an end token: give it one of them")
    return padding


def _pad(rows: Sequence[Sequence[int]], padding: int) -> tuple[Tensor, Tensor]:
    """Int[B, T] and Int[B, T]: ids, right-padded, and 1 where they are real."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), padding, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
        mask[number, : len(row)] = 1
    return ids, mask


class _Collator:
    """B rows, and below them the rejected texts of the P that are pairs, whose numbers are in ``pairs``."""

    def __init__(self, padding: int) -> None:
        self.padding = padding

    def __call__(self, rows: Sequence[_Row]) -> dict[str, Tensor]:
        pairs = [number for number, row in enumerate(rows) if row.rejected_ids is not None]
        rejected = [row.rejected_ids for row in rows if row.rejected_ids is not None]
        ids, mask = _pad([*(row.input_ids for row in rows), *rejected], self.padding)
        states = [row.states for row in rows if row.states is not None]
        states += [row.rejected_states for row in rows if row.rejected_states is not None]
        known = {"states": pad_states(states, ids.shape[1])} if states else {}
        return {
            **known,
            "input_ids": ids,
            "attention_mask": mask,
            "targets": torch.from_numpy(np.stack([row.targets for row in rows])),
            "weights": torch.from_numpy(np.stack([row.weights for row in rows])),
            "pairs": torch.tensor(pairs, dtype=torch.long),
        }


class _Order(Sampler[int]):
    """Rows of similar length side by side, in another order each epoch, which follows from (seed, epoch) alone."""

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(stream_seed("judge", self.seed, self.epoch))
        # Short and long batches alternate at random: sorted ones would teach short texts last.
        grouped = get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)
        batches = [grouped[at : at + self.batch_size] for at in range(0, len(grouped), self.batch_size)]
        mixed = torch.randperm(len(batches), generator=generator).tolist()
        return iter([row for number in mixed for row in batches[number]])


class _Trainer(Trainer):  # type: ignore[misc]
    """The trainer with our order of rows and our loss."""

    order: _Order
    main: int
    frozen: FrozenLayers | None

    def _get_train_sampler(self, train_dataset: Any = None) -> _Order:
        return self.order

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if self.frozen is not None:
            self.frozen.feed(inputs["states"])
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        logits = outputs.logits.float()
        n_rows = len(inputs["targets"])
        targets, weights = inputs["targets"], inputs["weights"]
        loss = masked_loss(logits[:n_rows], targets, weights)
        pairs = inputs["pairs"]
        if len(pairs):
            loss = loss + preference_loss(logits[pairs, self.main], logits[n_rows:, self.main])
        return (loss, outputs) if return_outputs else loss


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Writes metrics.jsonl, reports progress, refuses NaN, and marks checkpoints that are complete."""

    def __init__(self, run: Run, report: Report | None) -> None:
        self.run = run
        self.report = report
        self.started = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        names = ("loss", "grad_norm", "learning_rate", "eval_loss")
        metrics = {name: float(logs[name]) for name in names if name in logs}
        if not {"loss", "eval_loss"} & metrics.keys():
            return  # the trainer's closing summary
        wrong = [name for name in ("loss", "grad_norm", "eval_loss") if not math.isfinite(metrics.get(name, 0.0))]
        if wrong:
            raise TrainingError(
                f"step {state.global_step}: {wrong[0]} is {metrics[wrong[0]]}; the last checkpoint is kept: "
                "lower the learning rate or set precision=float32"
            )
        record = {
            "step": state.global_step,
            "seconds": time.perf_counter() - self.started,
            "epoch": state.epoch,
            **metrics,
            "peak_rss_mb": peak_rss_mb(),
        }
        self.started = time.perf_counter()
        self.run.append("metrics", [record])
        if self.report is not None:
            self.report(state.global_step, state.max_steps, record)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        write_manifest(Path(args.output_dir) / f"checkpoint-{state.global_step}")
