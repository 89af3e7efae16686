"""Train a judge: an encoder with a sigmoid for each label, on texts whose sources judged different labels.

Labels that a source doesn't have are masked out of the loss, so a data set of hate without swear words and
Perspective's scores of swear words can teach one network. Soft targets are shares of annotators or Perspective's
probabilities; hard ones are 0 and 1. Preference pairs teach the difference of two texts' logits (Bradley–Terry).
The result is a standard sequence classifier, or a LoRA adapter for one, with a card.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid
from torch.utils.data import Sampler
from transformers import AutoTokenizer, Conv1D, EarlyStoppingCallback, set_seed
from transformers.trainer_pt_utils import get_length_grouped_indices

from rewardlm.config import flatten
from rewardlm.data.dialogues import normalised
from rewardlm.disk import writing
from rewardlm.errors import DataError, ModelError
from rewardlm.judges import calibrate, trainer
from rewardlm.judges.augment import misspelt, regrouped
from rewardlm.judges.card import command, save_record
from rewardlm.judges.corpus import Corpus, balance, load_corpus
from rewardlm.judges.frozen import FrozenLayers, frozen_names, pad, pad_states
from rewardlm.judges.preferences import PreferencePair
from rewardlm.judges.settings import JudgeTrainSettings
from rewardlm.judges.teachers import Say, distil, fill, load_judges, load_teacher, recorded, refuse_others
from rewardlm.judges.texts import LabelledText
from rewardlm.judges.trainer import Watch, head_of, save_adapter, with_fresh_head
from rewardlm.models.generate import stream_seed
from rewardlm.models.load import resolve_device, resolve_dtype
from rewardlm.progress import ProgressCallback
from rewardlm.runs import Run, alone
from rewardlm.scoring.encoder import locate_encoder, public_name
from rewardlm.scoring.lineage import read_hashes, write_hashes
from rewardlm.scoring.record import Calibration, JudgeRecord, Teacher, judge_folder
from rewardlm.training.checkpoints import what_is_safe

# What doesn't change the result.
FREE_SETTINGS = ("device",)


@dataclass(frozen=True, slots=True)
class _Row:
    """A sample: a text's tokens with a target (NaN: unknown) and weight for every output, or two texts to compare.

    ``states`` are the frozen layers' output for the tokens, where layers are frozen.
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


def train_judge(
    settings: JudgeTrainSettings, out: Path, *, report: ProgressCallback | None = None, say: Say | None = None
) -> Run:
    """Train a judge in ``out``; a finished run is returned as it is, a killed one resumes from its last evaluation.

    ``out`` itself is then the judge: ``--scorer OUT`` loads it. Raises DataError for unusable sources, ModelError for
    an encoder that can't be loaded, TrainingError for NaN, and RunError where another command writes to ``out``.
    """
    with alone(out):
        return _train(settings, out, report, say)


def _train(settings: JudgeTrainSettings, out: Path, report: ProgressCallback | None, say: Say | None) -> Run:
    recorded_settings = settings.model_dump(mode="json")
    run = Run.start(out, kind="judge", label=out.name, settings=recorded_settings, free=FREE_SETTINGS)
    device = resolve_device(settings.device)
    judges = load_judges(settings.distil, settings.labels, str(device))
    distilled = [recorded(judge) for judge in judges]
    teacher = load_teacher(settings, str(device))
    refuse_others(run, distilled)
    if run.finished:
        return run
    run.update(distilled=[dataclasses.asdict(one) for one in distilled])
    corpus = load_corpus(settings)
    if say is not None:
        say(str(corpus))
    if judges and not corpus.train:
        raise DataError(
            f"distil: {', '.join(settings.data)} holds preference pairs alone; expected texts to teach with"
        )
    corpus = dataclasses.replace(corpus, train=distil(corpus.train, judges, settings.distil_share, say))
    filled = {} if teacher is None else fill(teacher, corpus.train, settings.labels, say)

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
    rows = [
        *_rows(tokenizer, corpus.train, settings, filled),
        *_rows(tokenizer, misspelt(corpus.train, settings.misspelt, settings.seed), settings),
        *_rows(tokenizer, regrouped(corpus.train, corpus.unseen, settings.regrouped, settings.seed), settings),
        *_pair_rows(tokenizer, corpus.preferences, settings),
    ]
    validation = _rows(tokenizer, corpus.validation, settings)
    model, steps = _fit(settings, run, model, rows, validation, _padding(tokenizer), report, say)
    model.to("cpu").float().eval()
    calibrations = _calibrate(settings, model, tokenizer, corpus.calibration)
    run.update(
        sources=[dataclasses.asdict(one) for one in corpus.sources],
        encoder={"name": settings.encoder, "revision": revision},
        **steps,
    )
    taught_by = None if teacher is None else recorded(teacher)
    with writing(out, safe=what_is_safe(out / "checkpoints")):
        _save(settings, out, model, tokenizer, revision, calibrations, corpus, distilled, taught_by)
    run.update(status="finished")
    return run


def _fit(
    settings: JudgeTrainSettings,
    run: Run,
    model: Any,
    rows: list[_Row],
    validation: list[_Row],
    padding: int,
    report: ProgressCallback | None,
    say: Say | None,
) -> tuple[Any, dict[str, Any]]:
    """The trained model, with its frozen layers put back, and what a run records of the training."""
    frozen = None
    if settings.frozen:
        precision = resolve_dtype(settings.precision, resolve_device(settings.device))
        frozen = FrozenLayers(model, settings.frozen, precision)
        if say is not None:
            say(f"the lowest {settings.frozen} layers read {len(rows) + len(validation):,} texts, once")
        rows, validation = (_with_states(frozen, some, padding) for some in (rows, validation))
        frozen.take_out()
    chooses = bool(validation) and settings.keep == "best"
    fitting = _Trainer(
        model=model,
        args=trainer.arguments(
            run,
            settings,
            learning_rate=settings.rate,
            every=max(1, math.ceil(len(rows) / settings.batch_size) // settings.evaluations),
            num_train_epochs=settings.epochs,
            eval_strategy="steps" if validation else "no",
            load_best_model_at_end=chooses,
            metric_for_best_model="eval_loss" if chooses else None,
            greater_is_better=False if chooses else None,
            label_names=["targets"],
            remove_unused_columns=False,
        ),
        train_dataset=rows,
        eval_dataset=validation or None,
        data_collator=_Collator(padding),
        callbacks=[Watch(run, report), *([EarlyStoppingCallback(settings.patience)] if chooses else [])],
    )
    fitting.main = settings.labels.index(settings.main)
    fitting.frozen = frozen
    fitting.order = _Order([row.length for row in rows], settings.batch_size, settings.seed)
    trainer.fit(fitting, run)
    if frozen is not None:
        frozen.restore()
    state = fitting.state
    losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
    return fitting.accelerator.unwrap_model(fitting.model), {
        "steps": state.global_step,
        "best_step": state.best_global_step if chooses else state.global_step,
        "validation_loss": state.best_metric if chooses else losses[-1] if losses else None,
    }


def _save(
    settings: JudgeTrainSettings,
    out: Path,
    model: Any,
    tokenizer: Any,
    revision: str | None,
    calibrations: Mapping[str, Calibration],
    corpus: Corpus,
    distilled: Sequence[Teacher],
    teacher: Teacher | None,
) -> None:
    """Weights (safetensors), tokenizer, ``judge.json`` and its card."""
    if settings.tuning == "lora":
        save_adapter(model, settings.encoder, out)
    else:
        # A calibrated judge's classes are its labels: other tools read them from the model's config.
        model.save_pretrained(str(out), safe_serialization=True)
        tokenizer.save_pretrained(str(out))
    record = JudgeRecord(
        labels=tuple(settings.labels),
        main=settings.main,
        encoder=public_name(settings.encoder),
        encoder_revision=revision,
        encoder_layers=settings.layers,
        max_length=settings.max_length,
        calibration={label: found for label, found in calibrations.items() if found.kind == "isotonic"},
        calibrated={label: found.kind for label, found in calibrations.items()},
        data=tuple(corpus.sources),
        distilled=tuple(distilled),
        teacher=teacher,
        share=settings.share,
        read=write_hashes(out, map(normalised, corpus.texts), _read_by_teachers(settings)),
        command=_command(settings),
        seed=settings.seed,
    )
    save_record(out, record)


def _command(settings: JudgeTrainSettings) -> str:
    mine, defaults = (flatten(one.model_dump(mode="json")) for one in (settings, JudgeTrainSettings(data=["starter"])))
    words = ["train", "--data", ",".join(mine.pop("data")), "--encoder", mine.pop("encoder")]
    return command(words, mine, defaults, flags=["seed"])


def _read_by_teachers(settings: JudgeTrainSettings) -> list[Any]:
    """Hashes of the texts that this judge's teachers have read, where they recorded them."""
    folders = [judge_folder(name) for name in [*settings.distil, *([settings.teacher] if settings.teacher else [])]]
    found = [read_hashes(folder) for folder in folders if folder is not None]
    return [hashes for hashes in found if hashes is not None]


def masked_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Weighted binary cross-entropy of the known targets: the sum over them, divided by the number of rows.

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


def _model(settings: JudgeTrainSettings, source: str, revision: str | None, padding: int) -> Any:
    """The encoder with a fresh head, one output per label; either all weights train, or an adapter."""
    lowest = {} if settings.layers is None else {"num_hidden_layers": settings.layers}
    model, loading = with_fresh_head(
        source,
        revision,
        settings.labels,
        "multi_label_classification",
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **lowest,
    )
    # A decoder needs it to find a text's last token.
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
        # The encoder's layers. Fresh modules train as a whole; a pooler that isn't fresh counts among the layers.
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
    """The modules that train as a whole: those above the classifier's base model, and those in it that are random.

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
    """The rows with the frozen layers' output for their texts."""
    paired = [row for row in rows if row.rejected_ids is not None]
    states = frozen.states([row.input_ids for row in rows], padding)
    rejected = iter(frozen.states([row.rejected_ids or [] for row in paired], padding))
    return [
        dataclasses.replace(row, states=own, rejected_states=None if row.rejected_ids is None else next(rejected))
        for row, own in zip(rows, states, strict=True)
    ]


def encode(tokenizer: Any, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """Token ids with the encoder's own special tokens. Those that a text spells out ("[SEP]") are plain text."""
    if not texts:
        return []
    encoded = tokenizer(
        list(texts), truncation=True, max_length=max_length, split_special_tokens=True, padding=False, verbose=False
    )
    ids: list[list[int]] = encoded["input_ids"]
    return ids


@torch.inference_mode()
def logits_of(model: Any, tokenizer: Any, texts: Sequence[str], max_length: int) -> np.ndarray[Any, Any]:
    """Float32[N, L], in the texts' order; in batches of like length."""
    ids = encode(tokenizer, texts, max_length)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    out = np.zeros((len(ids), model.config.num_labels), np.float32)
    for start in range(0, len(order), 64):
        batch = order[start : start + 64]
        inputs, mask = pad([ids[i] for i in batch], _padding(tokenizer))
        out[batch] = model(input_ids=inputs, attention_mask=mask).logits.float().numpy()
    return out


def _calibrate(
    settings: JudgeTrainSettings, model: Any, tokenizer: Any, texts: Sequence[LabelledText]
) -> dict[str, Calibration]:
    """Fit each label's calibration on ``texts``; what is linear in the logit is folded into the head."""
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
        weights = calibrate.text_weights(
            sources[known].tolist(), targets[known, column], evenly=settings.balance == "source"
        )
        found = calibrate.fit(settings.calibration, logits[known, column], targets[known, column], weights, shift=shift)
        if found is not None:
            fitted[label] = found
    calibrate.fold(head, settings.labels, fitted)
    return fitted


def _padding(tokenizer: Any) -> int:
    """The token that pads rows: the end token where a decoder's tokenizer has no padding token of its own."""
    padding: int | None = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    if padding is None:
        raise ModelError("the encoder's tokenizer has neither a padding token nor an end token: give it one of them")
    return padding


class _Collator:
    """B rows, and below them the rejected texts of the P rows that are pairs; ``pairs`` holds their row numbers."""

    def __init__(self, padding: int) -> None:
        self.padding = padding

    def __call__(self, rows: Sequence[_Row]) -> dict[str, Tensor]:
        pairs = [number for number, row in enumerate(rows) if row.rejected_ids is not None]
        rejected = [row.rejected_ids for row in rows if row.rejected_ids is not None]
        ids, mask = pad([*(row.input_ids for row in rows), *rejected], self.padding)
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
    """Rows of similar length side by side. Each epoch has another order, which depends on (seed, epoch) alone."""

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


class _Trainer(trainer.JudgeTrainer):
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
