"""Checks a command's settings before anything heavy is loaded: names, files, columns, folders, the hub.

A misspelt judge or a missing file is reported within a second, and all such mistakes together.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rewardlm import hub
from rewardlm.config import (
    BY_A_JUDGE,
    FinetuneSettings,
    InterpretSettings,
    MeasureSettings,
    MergeSettings,
    ModelSettings,
    PreferSettings,
    RewardedSettings,
    RlafSettings,
    ScoreSettings,
    Section,
    ServicesSettings,
    SteerFitSettings,
    SteerImportSettings,
    TrainingSettings,
    data_folder,
    is_function_name,
)
from rewardlm.config.keys import NAMED
from rewardlm.data.bad_lines import with_other_lines
from rewardlm.data.dialogues import load_dialogues
from rewardlm.data.files import HUB_ID, read_txt
from rewardlm.data.preferences import load_preferences
from rewardlm.data.prompts import RTP_HUB_ID, file_of, prompts_of
from rewardlm.data.utility import no_data, utility_files
from rewardlm.data.utility_prompts import load_asked
from rewardlm.errors import ConfigError, DataError, ModelError, NotAvailableError, RewardLMError, RunError
from rewardlm.judges.settings import (
    JudgeEvaluateSettings,
    JudgeMigrateSettings,
    JudgeServeSettings,
    JudgeTrainSettings,
    PairEvaluateSettings,
    PairJudgeSettings,
)
from rewardlm.models.names import check_adapter, check_model
from rewardlm.runs import Run
from rewardlm.scoring.encoder import check_encoder
from rewardlm.scoring.function import load_function
from rewardlm.scoring.load import check_judges, check_rewards
from rewardlm.scoring.pairs import check_pair_judge, is_pair_judge
from rewardlm.scoring.thresholds import check_thresholds
from rewardlm.services import check_address
from rewardlm.steering.record import read_record, refuse_strength

_DEVICE = re.compile(r"auto|cpu|mps|xpu|(cuda|xpu)(:\d+)?")
_FILES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".parquet")
_EXTRAS = {"bitsandbytes": "'rewardlm[quantised]'", "ray": "'rewardlm[ray]'"}
_OFFLINE = "the prompts starter and rtp:packaged, a file"
# A file of at most so many bytes is read whole here, and again by the command.
_SMALL = 20_000_000

Check = Callable[[], object]


def check(settings: Section, out: Path | None = None, *, kind: str | None = None) -> None:
    """Raise one RewardLMError for everything that is wrong with what ``settings`` name.

    ``out`` is where a run of ``kind`` will be written. What a resumed run has already is not checked again, and a
    finished run needs no other check.
    """
    begun = out is not None and (out / "run.json").exists()
    if out is not None and kind is not None and begun and Run.open(out).finished:
        _check_place(out, kind)
        return
    _all({"": _checks(settings, out, kind, begun=begun)})


def check_stages(stages: Mapping[str, Section], out: Path) -> None:
    """The same for all stages of an experiment, before the first one begins; a mistake that only some of them make is
    told with their sections. Their adapters don't exist yet.
    """
    begun = (out / "run.json").exists()
    checks = {}
    for section, settings in stages.items():
        if isinstance(settings, ModelSettings):
            settings = settings.model_copy(update={"adapter": None})
        checks[section] = _checks(settings, out, "experiment", begun=begun)
    _all(checks)


def _all(checks: Mapping[str, Iterable[Check]]) -> None:
    """Raise one error for all that the checks of each section find."""
    wrong: dict[str, tuple[RewardLMError, list[str]]] = {}
    for section, ones in checks.items():
        for one in ones:
            try:
                one()
            except RewardLMError as error:
                for sentence in error.problems or (error.summary,):
                    sections = wrong.setdefault(sentence, (error, []))[1]
                    if section not in sections:
                        sections.append(section)
    if not wrong:
        return
    first = next(iter(wrong.values()))[0]
    sentences = [
        # What a single command or every stage has wrong needs no name of its section.
        sentence if "" in checks or 1 < len(sections) == len(checks) else f"{', '.join(sections)}: {sentence}"
        for sentence, (_, sections) in wrong.items()
    ]
    if len({id(error) for error, _ in wrong.values()}) == 1 and sentences == list(wrong):
        raise first
    raise type(first).of(sentences, "{} things are wrong")


def _checks(settings: Section, out: Path | None, kind: str | None, *, begun: bool) -> Iterator[Check]:
    if out is not None and kind is not None:
        yield lambda: _check_place(out, kind)
    if isinstance(settings, ModelSettings):
        yield from _of_a_model(settings)
        yield partial(_check_packages, settings)
    if isinstance(settings, MeasureSettings):
        judges = [*settings.scorer, *([settings.toxic_by] if settings.toxic_by not in (None, "dataset") else [])]
        yield from (partial(check_judges, [name], settings.services) for name in judges)
        yield from _of_pairs(settings.counter_narrative)
        yield partial(check_thresholds, settings.thresholds, settings.matching, settings.scorer)
        if settings.steer is not None:
            yield partial(_check_steer_folder, settings, settings.steer)
        if settings.suite is not None:
            yield partial(_check_suite_of_a_model, settings)
        if settings.engine == "ray":
            yield partial(_check_cluster, settings.ray_address)
        if settings.engine == "openai":
            yield partial(
                check_address, settings.asked_server, what=f"the server of {settings.model!r}", section="server"
            )
    if isinstance(settings, SteerFitSettings):
        yield from _of_a_steering(settings)
    if isinstance(settings, SteerImportSettings):
        yield partial(_check_vector, settings.file)
    if isinstance(settings, RewardedSettings) and settings.draws:
        yield from (partial(check_rewards, [name], settings.services) for name in settings.reward)
        yield from (partial(check_judges, [name], settings.services) for name in settings.witness or [])
        terms = settings.reward_settings.terms
        if terms.counter_narrative:
            yield lambda: _check_pairs_or_classifier(terms.counter_narrative_judge, settings.services)
    if isinstance(settings, RlafSettings):
        yield partial(check_address, settings.rollout, what="the server that draws rollouts", section="rollout")
    if isinstance(settings, RlafSettings) and is_function_name(settings.algorithm):
        yield lambda: _check_estimator(settings.algorithm)
    if isinstance(settings, PreferSettings) and not begun:
        if settings.preferences is not None:
            yield partial(load_preferences, settings.preferences, method=settings.method)
        if settings.answers is not None:
            yield partial(Run.open, settings.answers, kind="prefer")
    if isinstance(settings, ScoreSettings):
        yield from (partial(check_judges, [name], settings.services) for name in settings.scorer)
        yield partial(check_thresholds, settings.thresholds, settings.matching, settings.scorer)
        yield from _of_pairs(settings.counter_narrative)
        if settings.perplexity is not None:
            yield lambda: check_model(str(settings.perplexity))
    asks = isinstance(settings, MeasureSettings) or (isinstance(settings, RewardedSettings) and settings.draws)
    if isinstance(settings, MeasureSettings | RewardedSettings) and asks and not begun:
        yield lambda: _check_prompts(settings)
    if isinstance(settings, TrainingSettings) and settings.retain_coef and settings.retain.source and not begun:
        yield partial(_check_text, settings.retain.source)
    if isinstance(settings, FinetuneSettings) and settings.replay.share:
        yield lambda: check_judges([settings.replay.judge], settings.replay.services)
        yield from _of_pairs(settings.replay.counter_narrative)
    if isinstance(settings, FinetuneSettings) and not begun:
        yield partial(_check_dialogues, settings.dialogues, **_columns(settings))
    if isinstance(settings, InterpretSettings) and settings.word_judge:
        yield partial(check_judges, [settings.word_judge])
    yield from _of_a_judge(settings)


def _of_a_judge(settings: Section) -> Iterator[Check]:
    """The checks of the commands that train, evaluate and serve judges."""
    if isinstance(settings, JudgeServeSettings):
        yield from (partial(check_judges, [name], settings.services) for name in settings.judge)
        yield partial(check_thresholds, settings.thresholds, settings.matching, settings.judge)
    if isinstance(settings, JudgeEvaluateSettings):
        yield from (partial(check_judges, [name], settings.services) for name in settings.judge)
        yield from (partial(_check_suite, source) for source in settings.suite)
    if isinstance(settings, JudgeMigrateSettings):
        yield lambda: check_judges([settings.to], settings.services)
        yield partial(_check_scored, settings)
    if isinstance(settings, JudgeTrainSettings):
        yield from (partial(_check_labelled, source) for source in settings.data)
        teachers = [*settings.distil, *([settings.teacher] if settings.teacher is not None else [])]
        yield from (partial(check_judges, [name]) for name in teachers)
    if isinstance(settings, PairJudgeSettings):
        yield from (partial(_check_labelled, source) for source in (*settings.hate, *settings.toxic))
        yield from _of_pairs(settings.start)
    if isinstance(settings, JudgeTrainSettings | PairJudgeSettings):
        yield partial(check_encoder, settings.encoder)
    if isinstance(settings, PairEvaluateSettings):
        yield partial(check_pair_judge, settings.judge)
    if isinstance(settings, PairJudgeSettings | PairEvaluateSettings):
        yield partial(_check_dialogues, settings.dialogues)


def _check_cluster(address: str | None) -> None:
    """A cluster gets the settings with their keys, and may run code here: a file must not choose it."""
    if address in (None, "auto", "local") or address in NAMED.clusters:
        return
    raise ConfigError(
        f"ray_address {address!r}: a Ray cluster can run code on this machine, and only a file has named this one; if "
        f"you trust it, name it yourself: ray_address={address}"
    )


def _check_packages(settings: ModelSettings) -> None:
    """Check for packages that only some settings need, and that may not be installed."""
    needed = {"bitsandbytes": f"--load {settings.load}"} if settings.load is not None else {}
    if isinstance(settings, MeasureSettings) and settings.engine == "ray":
        needed["ray"] = "--engine ray"
    if isinstance(settings, RewardedSettings):
        needed |= {name: f"the tracker {name}" for name in settings.trackers}
    wrong = [
        f"{what} needs the package {name}: pip install {_EXTRAS.get(name, name)}"
        for name, what in needed.items()
        if importlib.util.find_spec(name) is None
    ]
    if wrong:
        raise NotAvailableError("; ".join(wrong))


def _check_dialogues(source: str, **columns: Any) -> None:
    if not source.startswith("dialoconan"):  # which is fetched once, from where its authors publish it
        with _all_lines(source):
            load_dialogues(source, **columns)


def _check_text(source: str) -> None:
    for _ in read_txt(Path(source).expanduser()):
        pass


def _check_suite(source: str) -> None:
    from rewardlm.judges.suites import HATECHECK_HUB_ID, NAMED, load_suite

    if source not in NAMED:
        path = Path(source).expanduser()
        if not path.exists() or (path.is_file() and path.stat().st_size <= _SMALL):
            with _all_lines(source):
                load_suite(source)
    elif source == "hatecheck" and data_folder() is None:
        own = "the suite as a file, a folder of data sets ($REWARDLM_DATA)"
        hub.require(HATECHECK_HUB_ID, kind="dataset", what=f"the suite {source}", instead=own, error=DataError)


def _check_scored(settings: JudgeMigrateSettings) -> None:
    from rewardlm.judges.migrate import read_scored

    path = Path(settings.scored).expanduser()
    if not path.is_file() or path.stat().st_size <= _SMALL:
        with _all_lines(settings.scored):
            read_scored(settings)


def _check_labelled(source: str) -> None:
    from rewardlm.judges.texts import FILES, READINGS, load_labelled

    # An existing file is read once, by the command.
    if not Path(source).exists() and not (source in {**FILES, **READINGS} and data_folder() is not None):
        load_labelled(source)


def _of_a_model(settings: ModelSettings) -> Iterator[Check]:
    if not isinstance(settings, MeasureSettings) or settings.engine != "openai":
        yield lambda: check_model(settings.model)
    if settings.adapter is not None:
        yield partial(check_adapter, settings.adapter)
    elif isinstance(settings, MergeSettings):
        yield partial(_raise, ConfigError("nothing to merge: name the adapter with --adapter"))
    if not _DEVICE.fullmatch(settings.device):
        yield partial(_raise, ModelError(f"device {settings.device!r}: expected auto, cpu, cuda or cuda:N"))


def _of_pairs(judge: str | None) -> Iterator[Check]:
    if judge is not None:
        yield lambda: check_pair_judge(judge)


def _of_a_steering(settings: SteerFitSettings) -> Iterator[Check]:
    """What ``steer fit`` names: a run, a judge, adapters."""
    if settings.run is not None:
        yield partial(Run.open, settings.run, kind="measure")
    if settings.method in BY_A_JUDGE:
        yield lambda: check_judges([settings.judge or "starter"], settings.services)
    adapters = (settings.dexperts.expert, settings.dexperts.anti_expert, settings.task_vector.toxic_adapter)
    yield from (partial(check_adapter, adapter) for adapter in adapters if adapter is not None)


def _check_vector(file: Path) -> None:
    if not file.is_file():
        raise RunError(f"{file}: no such file; expected a control vector of llama.cpp (.gguf)")


def _check_steer_folder(settings: MeasureSettings, folder: Path) -> None:
    found = read_record(folder)
    refuse_strength(found.method, found.at(settings.strength), settings.generation)
    if found.method in BY_A_JUDGE:
        check_judges([judge.name for judge in found.judges], settings.services)
    for adapter in found.adapters.values():
        check_adapter(folder / adapter["path"])


def _check_suite_of_a_model(settings: MeasureSettings) -> None:
    """The data of ``measure --suite``, and whether the model's steering can be asked about given texts."""
    reads = settings.utility.read_tasks
    here = utility_files(settings.utility)
    if len(reads) == len(settings.utility.tasks) and not here:
        raise DataError(no_data(reads))
    load_asked(settings.utility)
    if here and settings.steer is not None and settings.strength != 0 and read_record(settings.steer).method == "pplm":
        raise NotAvailableError(
            "suite utility asks how likely given texts are, and pplm moves its past only while it draws: ask only "
            "for answers (utility.tasks=over_refusal,groups), or take another method"
        )


def _check_pairs_or_classifier(judge: str, services: ServicesSettings) -> None:
    if not is_pair_judge(judge):
        check_judges([judge], services)


def _check_estimator(name: str) -> None:
    try:
        load_function(name)
    except ValueError as error:
        raise ConfigError(f"algorithm {name!r}: {error}") from None


def _check_prompts(settings: MeasureSettings | RewardedSettings) -> None:
    source = settings.prompts
    name, _, suffix = source.partition(":")
    path = file_of(source)
    if path is not None and path.stat().st_size > _SMALL:
        return
    if name == "rtp" and suffix.partition(":")[0] != "packaged":
        hub.require(RTP_HUB_ID, kind="dataset", what=f"the prompts {source}", instead=_OFFLINE, error=DataError)
    elif path is None and name.startswith("dialoconan"):
        return  # fetched once, from where its authors publish it
    elif path is None and HUB_ID.fullmatch(name) and Path(name).suffix not in _FILES:
        hub.require(name, kind="dataset", what=f"the prompts {name}", instead=_OFFLINE, error=DataError)
    else:
        with _all_lines(source):
            prompts = prompts_of(settings).prompts
        toxic_by = getattr(settings, "toxic_by", None)
        if toxic_by == "dataset" and all(prompt.toxicity is None for prompt in prompts):
            raise ConfigError(f"toxic_by is 'dataset', but {source} has no scores: name a scorer")


@contextmanager
def _all_lines(source: str) -> Iterator[None]:
    """Inside, an error about one line of the file ``source`` also names the other lines that are broken."""
    try:
        yield
    except DataError as error:
        path = file_of(source)
        if path is None:
            raise
        raise with_other_lines(error, path) from None


def _columns(settings: Section) -> dict[str, Any]:
    """The columns that the user named."""
    named = {name: getattr(settings, name, None) for name in ("text_column", "answer_column")}
    return {name: column for name, column in named.items() if column is not None}


def _check_place(out: Path, kind: str) -> None:
    if (out / "run.json").exists():
        found = Run.open(out).meta["kind"]
        if found != kind:
            raise RunError(f"{out} holds a run of kind {found!r}, not {kind!r}: choose another --out")
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file: --out needs a directory")
    above = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not above.is_dir():
        raise RunError(f"{out}: {above} is a file: --out needs a directory")
    if not os.access(above, os.W_OK | os.X_OK):
        raise RunError(f"{out}: you may not write to {above}: choose another --out")


def _raise(error: RewardLMError) -> None:
    raise error
