"""``judge list``: the judges that can be used here, their figures, and what each is at chance on.

Figures of the judges that everybody has lie in ``figures.json``; a judge that was trained here carries its own in its
card. A figure that nobody has measured is absent, not guessed. With REWARDLM_DATA set, figures.json is made by

    rewardlm judge list NAME… --measure --suite hatecheck --suite rtp --suite jigsaw --suite toxigen --suite hatemoji \\
        --suite DIALOCONAN.csv --out src/rewardlm/judges/figures.json
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rewardlm.config import ServicesSettings, data_folder
from rewardlm.errors import ConfigError, DataError
from rewardlm.judges.evaluate import Report, evaluate
from rewardlm.judges.metrics import is_at_chance
from rewardlm.judges.settings import JudgeEvaluateSettings, JudgeListSettings
from rewardlm.judges.suites import NAMED
from rewardlm.runs import environment, write_atomically
from rewardlm.scoring.endpoint import endpoint_address
from rewardlm.scoring.perspective import CLOSES, has_key
from rewardlm.scoring.scorer import is_here
from rewardlm.scoring.trained import judge_folder

_KEPT = (
    "label", "target", "kind", "n", "scored", "auc", "auc_ci95", "average_precision", "spearman", "spearman_ci95",
    "ece", "brier", "accuracy", "f1", "false_positive_rate", "false_negative_rate", "sha256", "revision",
)  # fmt: skip
_PACKAGED = {
    "lexical": ("a linear SVM over words, trained on Jigsaw-like comments", "pip install 'rewardlm[lexical]'"),
    "lexical2": (
        "an LSTM over words with Jigsaw's six labels",
        "pip install 'rewardlm[lexical]', and pip install --no-deps tox_block==0.1.2",
    ),
}
_OWN = {
    "starter": "RewardLM's own: toxicity, hate and six more labels on MiniLM",
    "witness": "a second one of its own, on other texts and another encoder: to measure what starter trained",
    "toxicity+hate": "the higher of starter's toxicity and hate, with their disagreement",
}
_FOLDERS = {"toxicity+hate": "starter"}
_A_VERSION = "a version of rewardlm that ships it"
# Classifiers that are often used as judges; nobody has measured them here.
_ON_THE_HUB = {
    "facebook/roberta-hate-speech-dynabench-r4-target#hate": "hate, RoBERTa base, adversarial data",
    "s-nlp/roberta_toxicity_classifier#toxic": "toxicity, RoBERTa base, Jigsaw data",
    "unitary/toxic-bert#toxic": "toxicity and five more labels, BERT base, Jigsaw data",
}


def list_judges(
    settings: JudgeListSettings, *, figures_file: Path | None = None, report: Report | None = None
) -> list[dict[str, Any]]:
    """Every judge: name, what, usable, needs (how to get it), figures by suite, speed, at_chance.

    With ``measure`` the figures are made now, for the judges that are named or else usable, and written to
    ``figures_file`` where one is given, beside what it holds of other judges. Raises ConfigError for a name that isn't
    listed, DataError where there is no suite to measure on, and what ``evaluate`` raises.
    """
    online = _online(settings.services)
    judges = [*_shipped(), *_trained(settings.dir), *_elsewhere(), *online]
    if settings.names:
        known = [judge["name"] for judge in judges]
        for name in settings.names:
            if name not in known:
                raise ConfigError(f"judge {name!r} is not listed: there are {', '.join(known)}; --dir looks for others")
        judges = [judge for judge in judges if judge["name"] in settings.names]
    if settings.measure:
        # Nobody is asked over a network, and paid, unless he is named.
        names = settings.names or [judge["name"] for judge in judges if judge["usable"] and judge not in online]
        measured = measure_figures(names, settings, report=report)
        if figures_file is not None:
            _write_figures(figures_file, measured)
        for judge in judges:
            judge |= {key: measured.get(judge["name"], {}).get(key, {}) for key in ("figures", "speed")}
    return [{**judge, "at_chance": at_chance(judge["figures"])} for judge in judges]


def measure_figures(
    names: Sequence[str], settings: JudgeListSettings, *, report: Report | None = None
) -> dict[str, dict[str, Any]]:
    """Figures of the judges ``names`` by evaluating them: {name: {"figures": {suite: …}, "speed", "environment"}}."""
    folder = data_folder()
    suites = settings.suite or [name for name, file in NAMED.items() if folder and (folder / file).is_file()]
    if not suites:
        raise DataError("no suite to measure on: set REWARDLM_DATA to the folder of data sets, or name one by --suite")
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
            "figures": {r["suite"]: summary(r) for r in done["results"] if r["judge"] == name},
            "speed": next(r["speed"] for r in done["results"] if r["judge"] == name),
            "environment": machine,
        }
        for name in names
    }


def summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a result of ``evaluate`` for the list and for a judge's card."""
    bias, counter = result["bias"], result["counter_speech"]
    return {
        **{key: result[key] for key in _KEPT},
        "bias": bias and bias["power_mean"],
        "counter_speech_false_positive_rate": counter and counter["false_positive_rate"],
        "functionalities": {name: entry["auc"] for name, entry in (result["by_functionality"] or {}).items()},
    }


def at_chance(figures: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Suites, and kinds of test within them, that the judge can't tell from their opposite.

    [{"suite", "functionality" (None: the whole suite), "auc"}], where the AUC is below 0.6 or, of a whole suite, its
    95 % interval holds 0.5.
    """
    found: list[dict[str, Any]] = []
    for suite, entry in figures.items():
        if is_at_chance(entry.get("auc"), entry.get("auc_ci95")):
            found.append({"suite": suite, "functionality": None, "auc": entry["auc"]})
        for name, part in (entry.get("functionalities") or {}).items():
            if is_at_chance(part):
                found.append({"suite": suite, "functionality": name, "auc": part})
    return found


def card_folder(name: str) -> Path:
    """The folder of the judge ``name``, which has a card. Raises ConfigError for a judge that was not trained here."""
    folder = judge_folder(name)
    if folder is None or _record(folder) is None:
        raise ConfigError(f"{name} has no judge.json: only a judge made by judge train has a card to write to")
    return folder


def add_to_card(folder: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Write figures of ``evaluate`` into the card of the judge in ``card_folder``, beside what it says already."""
    from rewardlm.judges.card import RECORD, write_card

    record = _record(folder) or {}
    record["metrics"] = {**record.get("metrics", {}), **{r["suite"]: summary(r) for r in results}}
    record["speed"] = next((r["speed"] for r in results if r["speed"]), record.get("speed"))
    write_atomically(folder / RECORD, json.dumps(record, indent=1, allow_nan=False).encode())
    write_card(folder, record)


def packaged_figures() -> dict[str, dict[str, Any]]:
    """The figures that the package brings: {judge: {"figures": {suite: …}, "speed", "environment"}}."""
    file = importlib.resources.files("rewardlm.judges") / "figures.json"
    judges: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["judges"]
    return judges


def _shipped() -> list[dict[str, Any]]:
    figures = packaged_figures()
    judges = [
        _judge(name, what, judge_folder(_FOLDERS.get(name, name)) is not None, _A_VERSION, figures)
        for name, what in _OWN.items()
    ]
    judges += [_judge(name, what, is_here(name), install, figures) for name, (what, install) in _PACKAGED.items()]
    return judges


def _trained(folder: Path | None) -> list[dict[str, Any]]:
    """Judges of texts in ``folder`` and one level below, by their judge.json or a classifier's config.json."""
    if folder is None:
        return []
    if not folder.is_dir():
        raise ConfigError(f"--dir {folder} is no folder; expected one that holds judges")
    judges = []
    for path in [folder, *sorted(child for child in folder.iterdir() if child.is_dir())]:
        record = _record(path)
        if record is not None and record.get("kind", "text") == "text":
            what = f"trained here: {', '.join(record['labels'])} on {record['encoder']}"
            known = {"figures": record.get("metrics", {}), "speed": record.get("speed")}
            judges.append(_judge(str(path), what, True, None, {str(path): known}))
        elif record is None and (architectures := _architectures(path)):
            judges.append(_judge(str(path), f"a {architectures[0]}", True, None, {}))
    return judges


def _elsewhere() -> list[dict[str, Any]]:
    return [_judge(name, what, False, "the hub, on first use", {}) for name, what in _ON_THE_HUB.items()]


def _online(services: ServicesSettings) -> list[dict[str, Any]]:
    """Judges that are asked over HTTP: usable where the settings or the environment say how."""
    attributes = len(services.perspective.attributes)
    judges = [
        _judge(
            "perspective",
            f"Google's Perspective API, {attributes} attributes; it closes on {CLOSES}: starter stays",
            has_key(services.perspective),
            f"a key in {services.perspective.key_variable}",
            {},
        ),
        _judge(
            "endpoint",
            "an OpenAI-compatible server's moderation, or a chat model with a rubric",
            endpoint_address("endpoint", services) is not None,
            "services.endpoint.url=… or REWARDLM_ENDPOINT_URL",
            {},
        ),
    ]
    for name in services.endpoints:
        usable = endpoint_address(f"endpoint:{name}", services) is not None
        needs = f"services.endpoints.{name}.url=…"
        judges.append(_judge(f"endpoint:{name}", "another server of that kind", usable, needs, {}))
    return judges


def _judge(
    name: str, what: str, usable: bool, needs: str | None, figures: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    return {
        "name": name,
        "what": what,
        "usable": usable,
        "needs": None if usable else needs,
        "figures": dict(figures.get(name, {}).get("figures", {})),
        "speed": figures.get(name, {}).get("speed"),
    }


def _record(folder: Path) -> dict[str, Any] | None:
    file = folder / "judge.json"
    if not file.is_file():
        return None
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file} is damaged ({error}); expected one JSON object") from None
    if not isinstance(record, dict) or not {"labels", "encoder"} <= record.keys():
        raise DataError(f"{file} lacks labels or encoder: it was not written by rewardlm")
    return record


def _architectures(folder: Path) -> list[str]:
    """The sequence classifiers that a transformers config.json names."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there, or something else's file: no judge
        return []
    named = config.get("architectures") if isinstance(config, dict) else None
    return [str(name) for name in named or [] if str(name).endswith("ForSequenceClassification")]


def _write_figures(file: Path, measured: Mapping[str, Any]) -> None:
    known: dict[str, Any] = {}
    if file.is_file():
        known = json.loads(file.read_text(encoding="utf-8")).get("judges", {})
    for name, entry in measured.items():
        figures = {**known.get(name, {}).get("figures", {}), **entry["figures"]}
        known[name] = {**entry, "figures": figures}
    write_atomically(file, (json.dumps({"judges": known}, indent=1, allow_nan=False) + "\n").encode())
