"""A whole experiment: PT, FT, preference training and RL measured on the same prompts, compared and reported.

Each stage is a run of its own below ``out``, so each resumes by itself and an experiment that was stopped goes on:

    measure/PT  train/FT  measure/FT  train/DPO  measure/DPO  train/DPO-again  measure/DPO-again  train/RL  measure/RL
    interpret/all  comparison.json  report.html
"""

from __future__ import annotations

import copy
import importlib.resources
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import yaml

from rewardlm.config import (
    LABELS,
    ExperimentSettings,
    FinetuneSettings,
    InterpretSettings,
    MeasureSettings,
    PreferSettings,
    PrimarySettings,
    ReplaySettings,
    RewardedSettings,
    RlafSettings,
    StageFinetune,
    StagePreference,
    how_asked,
    merge,
    split_names,
    validate,
)
from rewardlm.data.dialogues import load_dialogues, normalised, split_by_component
from rewardlm.data.prompts import load_prompts, prompts_of
from rewardlm.errors import ConfigError, RewardLMError, did_you_mean
from rewardlm.measuring.comparison import Comparison
from rewardlm.measuring.primary import spelt_out
from rewardlm.preflight import check_stages
from rewardlm.runs import Run, write_atomically
from rewardlm.types import Prompt

PRESETS = ("quick", "full")
# Another training has done most of the work. Many more steps, or PPO at its usual rate and KL, would move the answers
# elsewhere: docs/results.md, `make prove-demo` and the experiment of record.
_STEPS_AFTER_ANOTHER = 10
_PPO_RATE_AFTER_ANOTHER = 4e-4

# May differ when an experiment is resumed; each stage also checks its own settings.
_FREE = (
    "device",
    "title",
    "measure.batch_tokens",
    "measure.max_failed_share",
    "measure.suite",
    "measure.utility",
    "measure.effect",
    "finetune.micro_batch_size",
    "finetune.gradient_checkpointing",
    "finetune.checkpoint_every",
    "finetune.resume",
    "finetune.shard",
    *(
        f"{section}.{key}"
        for section in ("prefer", "prefer_again")
        for key in ("gradient_checkpointing", "checkpoint_every", "samples_every", "resume", "shard", "stop_on")
    ),
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


class _Preference(NamedTuple):
    """A preference training of an experiment; ``strength`` is that of its adapter where it is measured."""

    label: str
    section: str
    settings: PreferSettings
    strength: float | None


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
    finetuning = _finetune_settings(settings)
    preferring = _prefer_settings(settings, out)
    rlaf = _rlaf_settings(settings, out)
    interpreting = _interpret_settings(settings)
    measured = _measurements(settings, preferring, out)
    stages = {
        "measure": measured["PT"],
        "finetune": finetuning,
        **{training.section: training.settings for training in preferring},
        "rlaf": rlaf,
        "interpret": interpreting,
    }
    check_stages({section: settings for section, settings in stages.items() if settings is not None}, out)
    if _here(settings.measure.prompts):
        for label, section, training in _asking(preferring, rlaf):
            if not _trained(out, label) and _here(training.prompts):
                _refuse_measured(
                    label, prompts_of(training).prompts, prompts_of(measured[label]).prompts, f"{section}.part"
                )
        replayed = _replayed(finetuning)
        if replayed is not None and not _trained(out, "FT") and _here(replayed.prompts or ""):
            _refuse_measured(
                "fine-tuning", _replay_prompts(replayed), prompts_of(measured["FT"]).prompts, "finetune.replay.part"
            )
    recorded = settings.model_dump(mode="json")

    # Torch is imported only from here on, so that a wrong setting is reported at once.
    from rewardlm.measuring.judging import cut_short
    from rewardlm.measuring.meter import measure
    from rewardlm.measuring.power import size_warning_by
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
    preferences = {training.label: training.settings for training in preferring}
    for label in measured:
        if label == "FT" and finetuning is not None:
            from rewardlm.training.sft import finetune

            if not _trained(out, "FT"):
                _warn_of_measured(finetuning, _stored(out), say)
                if (replayed := _replayed(finetuning)) is not None:
                    prompts = _replay_prompts(replayed)
                    _refuse_measured("fine-tuning", prompts, _stored(out), "finetune.replay.part")
            with _told(stage, "train FT: counter-narratives") as progress:
                runs.append(finetune(finetuning, out / "train" / "FT", report=progress.report, say=say).path)
        for asking, section, training in _asking(preferring, rlaf):
            if label == asking and not _trained(out, label):
                _refuse_measured(label, prompts_of(training).prompts, _stored(out), f"{section}.part")
        if label in preferences:
            from rewardlm.training.prefer import prefer

            learning = preferences[label]
            source = "its own answers" if learning.draws else "preferences from a file"
            with _told(stage, f"train {label}: {LABELS[learning.method]} on {source}") as progress:
                runs.append(prefer(learning, _folder(out, "train", label), report=progress.report, say=say).path)
        if label == "RL" and rlaf is not None:
            from rewardlm.training.rlaf import train

            with _told(stage, f"train RL: {rlaf.algorithm} against {', '.join(rlaf.reward)}") as progress:
                runs.append(train(rlaf, out / "train" / "RL", report=progress.report, say=say).path)
        with _told(stage, f"measure {label}") as progress:
            first = label == "PT"
            folder = _folder(out, "measure", label)
            run = measure(measured[label], folder, report=progress.report, say=say if first else None)
        runs.append(run.path)
        if first and len(measured) > 1:
            small = processes.first(lambda: size_warning_by(out / "measure" / "PT", settings.measure.effect))
            if small is not None:
                say(small)
        for sentence in cut_short(run):
            say(f"{label}: {sentence}")
    if interpreting is not None:
        from rewardlm.interpreting.interpretation import interpret

        folders = [_folder(out, "measure", label) for label in measured]
        with _told(stage, "interpret: what changed inside") as progress:
            report = progress.report

            def look() -> Path:
                return interpret(folders, interpreting, out / "interpret" / "all", report=report).path

            runs.append(processes.first(look))

    def end() -> tuple[Comparison, Path]:
        experiment.update(runs=[str(path.relative_to(out)) for path in runs])
        concluded = _conclude(out, [_folder(out, "measure", label) for label in measured], settings.title)
        experiment.update(status="finished")
        return concluded

    return processes.first(end)


@contextmanager
def _told(stage: StageOf, title: str) -> Iterator[Progress]:
    """A stage whose errors say where they happened: ``train RL: …``."""
    with stage(title) as progress:
        try:
            yield progress
        except RewardLMError as error:
            error.args = (f"{title.partition(':')[0]}: {error.summary}", *error.args[1:])
            raise


def _measurements(
    settings: ExperimentSettings, preferring: Sequence[_Preference], out: Path
) -> dict[str, MeasureSettings]:
    """The measurement of each model, by the label of what trained it."""
    strengths = {training.label: training.strength for training in preferring}
    trained = [
        *(["FT"] if settings.finetune is not None else []),
        *strengths,
        *(["RL"] if settings.rlaf is not None else []),
    ]
    measured: dict[str, MeasureSettings] = {}
    for label in ("PT", *trained):
        strength = strengths.get(label)
        own = {
            "label": label if strength is None else f"{label} × {strength:g}",
            "adapter": None if label == "PT" else _folder(out, "train", label) / "adapter",
            "adapter_strength": strength,
        }
        measured[label] = validate(MeasureSettings, {**settings.common(), **settings.measure.model_dump(), **own})
    return measured


def _folder(out: Path, stage: str, label: str) -> Path:
    """Where a stage's run lies: train/DPO-again."""
    return out / stage / label.replace(" ", "-")


def _asking(preferring: Sequence[_Preference], rlaf: RlafSettings | None) -> list[tuple[str, str, RewardedSettings]]:
    """The trainings that ask prompts: label, section and settings."""
    found: list[tuple[str, str, RewardedSettings]] = [
        (training.label, training.section, training.settings) for training in preferring if training.settings.draws
    ]
    if rlaf is not None:
        found.append(("RL", "rlaf", rlaf))
    return found


def _with_primary(settings: ExperimentSettings) -> ExperimentSettings:
    """With the primary outcome spelt out, so that every measurement records it before there is a result."""
    rewards: list[str] = []
    for training in (settings.prefer, _again(settings), settings.rlaf):
        if training is not None:
            reward = training.get("reward") or RlafSettings.model_fields["reward"].default
            rewards += split_names([reward] if isinstance(reward, str) else reward)
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
    before = _before(settings, out, own, "rlaf", ("base", "finetune", "prefer"))
    if before is not None:
        own = {"steps": _STEPS_AFTER_ANOTHER, **own, "adapter": before}
    rlaf = validate(RlafSettings, {**settings.common(), **own})
    if before is not None and rlaf.algorithm == "ppo":
        own = {"learning_rate": _PPO_RATE_AFTER_ANOTHER, **own}
        usual = rlaf.kl_settings.coef
        if rlaf.kl.coef is None and usual is not None:
            own["kl"] = {**own.get("kl", {}), "coef": 2 * usual}
        rlaf = validate(RlafSettings, {**settings.common(), **own})
    _refuse_same_prompts(settings, rlaf, "RL", "rlaf")
    return rlaf


def _prefer_settings(settings: ExperimentSettings, out: Path) -> list[_Preference]:
    """The preference trainings, in the order in which they are done. Their labels differ."""
    found: list[_Preference] = []
    for section, tree in (("prefer", settings.prefer), ("prefer_again", _again(settings))):
        if tree is None:
            continue
        own = dict(tree)
        if found:
            before: Path | None = _folder(out, "train", found[0].label) / "adapter"
        else:
            before = _before(settings, out, own, section, ("base", "finetune"))
        if before is not None:
            own["adapter"] = before
        stage = validate(StagePreference, {**settings.common(), **own})
        if stage.draws:
            _refuse_same_prompts(settings, stage, "preference training", section)
        own.pop("adapter_strength", None)
        label = LABELS[stage.method]
        found.append(
            _Preference(
                f"{label} again" if found and label == found[0].label else label,
                section,
                validate(PreferSettings, {**settings.common(), **own}),
                stage.adapter_strength,
            )
        )
    return found


def _again(settings: ExperimentSettings) -> dict[str, Any] | None:
    """The settings of the second preference training: those of the first, and over them its own."""
    if settings.prefer_again is None:
        return None
    if settings.prefer is None:
        raise ConfigError("prefer_again goes on from the adapter of prefer, but the experiment has no prefer section")
    if "adapter" in settings.prefer_again:
        raise ConfigError("prefer_again.adapter: it goes on from the adapter of prefer; leave it out")
    # What the first one started from, and a strength that is the first one's own, is not meant for the second.
    only_the_first = ("after", "adapter", "lora", "answers", "preferences", "adapter_strength")
    tree = {key: copy.deepcopy(value) for key, value in settings.prefer.items() if key not in only_the_first}
    merge(tree, settings.prefer_again)
    return tree


def _before(
    settings: ExperimentSettings, out: Path, own: dict[str, Any], section: str, allowed: Sequence[str]
) -> Path | None:
    """The adapter that a training starts from, by the ``after`` that is taken out of its keys; None for the base."""
    # A training that has an adapter of its own starts from the base.
    after = own.pop("after", None) or ("base" if settings.finetune is None or "lora" in own else "finetune")
    if after not in allowed:
        raise ConfigError(f"{section}.after {after!r}: expected {' or '.join(map(repr, allowed))}")
    if after == "base":
        return None
    if getattr(settings, after) is None:
        raise ConfigError(f"{section}.after is {after!r}, but the experiment has no {after} section")
    label = "FT" if after == "finetune" else _prefer_settings(settings, out)[-1].label
    return _folder(out, "train", label) / "adapter"


def _refuse_same_prompts(settings: ExperimentSettings, training: RewardedSettings, who: str, section: str) -> None:
    if training.prompts == settings.measure.prompts and {training.part, settings.measure.part} != {"train", "measure"}:
        raise ConfigError(
            f"{who} would train on the prompts that are measured ({training.prompts}): "
            f"set measure.part to 'measure' and {section}.part to 'train'"
        )


def _interpret_settings(settings: ExperimentSettings) -> InterpretSettings | None:
    if settings.interpret is None:
        return None
    if settings.finetune is None and settings.prefer is None and settings.rlaf is None:
        raise ConfigError(
            "interpret compares trained models with the base: the experiment needs finetune, prefer or rlaf"
        )
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
