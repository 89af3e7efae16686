"""The judges that are served: loaded, with their versions, and what each can be asked for.

A judge answers for an attribute of Perspective only if it has a label that was taught to mean it (``ATTRIBUTES``), or
if the user declares one. Anything else is refused: a score under a name that it doesn't deserve would be an invention.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from rewardlm.errors import ConfigError, did_you_mean
from rewardlm.progress import say
from rewardlm.scoring.ensemble import Ensemble
from rewardlm.scoring.function import FunctionScorer
from rewardlm.scoring.load import load_scorer
from rewardlm.scoring.record import record_of
from rewardlm.scoring.scorer import Scorer, is_online, twin_of
from rewardlm.scoring.thresholds import refuse_loaded, thresholds_of
from rewardlm.scoring.versions import JudgeVersion, version_of
from rewardlm.serving.refusals import Refusal
from rewardlm.types import DISAGREEMENT

if TYPE_CHECKING:
    from rewardlm.judges.settings import JudgeServeSettings

# Perspective's attributes, and the labels that mean the same, lower-cased: Perspective's own names, and those of
# Jigsaw's data sets of comments, from which both Perspective and most public judges learnt.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "TOXICITY": ("toxicity", "toxic"),
    "SEVERE_TOXICITY": ("severe_toxicity", "severe_toxic"),
    "IDENTITY_ATTACK": ("identity_attack", "identity_hate"),
    "INSULT": ("insult",),
    "PROFANITY": ("profanity", "obscene"),
    "THREAT": ("threat",),
    "SEXUALLY_EXPLICIT": ("sexually_explicit", "sexual_explicit"),
    "FLIRTATION": ("flirtation",),
    "ATTACK_ON_AUTHOR": ("attack_on_author",),
    "ATTACK_ON_COMMENTER": ("attack_on_commenter",),
    "INCOHERENT": ("incoherent",),
    "INFLAMMATORY": ("inflammatory",),
    "LIKELY_TO_REJECT": ("likely_to_reject",),
    "OBSCENE": ("obscene",),
    "SPAM": ("spam",),
    "UNSUBSTANTIAL": ("unsubstantial",),
}
# On two cores, two threads with a core each serve a quarter more texts than one with both (docs/serving.md). With many
# threads, Python would be what they wait for.
_MOST_WORKERS = 4


@dataclass(frozen=True, slots=True)
class ServedJudge:
    """A loaded judge. ``attributes`` maps Perspective's attributes to its labels; ``labels`` are those whose values are
    degrees of something (an ensemble's disagreement is none). A text is flagged for a label if its score is above the
    label's threshold, and flagged altogether if it is so for one of ``deciding``. ``twins`` are the same judge for
    further threads. ``reopen`` loads the judge again.
    """

    name: str
    scorer: Scorer
    version: JudgeVersion
    labels: tuple[str, ...]
    attributes: Mapping[str, str]
    thresholds: Mapping[str, float]
    deciding: tuple[str, ...]
    twins: tuple[Scorer, ...] = ()
    reopen: Callable[[], Scorer] | None = None

    @property
    def waits_for_others(self) -> bool:
        """Whether it may wait for something else than this machine's processor."""
        return _waits_for_others(self.scorer)

    @property
    def main(self) -> str:
        """The label that is meant where only the judge is named."""
        return self.labels[0]

    @property
    def headers(self) -> dict[str, str]:
        """Which judge it was, for every answer. A name that no header can hold is percent-encoded."""
        return {
            "X-Judge": quote(self.name, safe="!#$&'()*+,/:;=?@[]~"),
            "X-Judge-Version": quote(self.version.version, safe="@+=:, "),
            "X-Judge-Weights": quote(self.version.weights or "none", safe="@+=:, "),
        }

    def to_dict(self) -> dict[str, Any]:
        """The same for a body."""
        return {"judge": self.name, "version": self.version.version, "weights": self.version.weights}


@dataclass(frozen=True, slots=True)
class ServedJudges:
    """All of them by name, the default one first, and the names that mean one of them."""

    by_name: Mapping[str, ServedJudge]
    aliases: Mapping[str, str]

    @property
    def default(self) -> ServedJudge:
        """The judge that answers where a request names none."""
        return next(iter(self.by_name.values()))

    def named(self, *names: str | None) -> ServedJudge:
        """The judge that a request names, in its body or its address. Raises Refusal where there is none of that
        name, or two names mean different judges.
        """
        given = {name: self.by_name.get(self.aliases.get(name, name)) for name in names if name}
        for name, judge in given.items():
            if judge is None:
                raise Refusal(
                    404,
                    f"no judge {name[:80]!r} is served here: expected one of {', '.join(self.by_name)}",
                    error_type="INVALID_REQUEST",
                    code="model_not_found",
                    param="model",
                )
        judges = [judge for judge in given.values() if judge is not None]
        if len({judge.name for judge in judges}) > 1:
            raise Refusal(400, "the request names two different judges: name one", error_type="INVALID_REQUEST")
        return judges[0] if judges else self.default


def check_labels(settings: JudgeServeSettings) -> None:
    """Raise ConfigError where ``attributes`` or ``label_thresholds`` name a label that no judge has, as far as
    judge.json of a judge that was trained here tells. Loads nothing.
    """
    records = [record_of(name) for name in settings.judge]
    known = {label for record in records if record is not None for label in record.labels}
    if all(record is not None for record in records):
        _check_known(settings, known)


def load_judges(settings: JudgeServeSettings) -> ServedJudges:
    """Load all judges.

    Raises ConfigError where a setting names a label that none of them has, RunError where a threshold was made for
    other weights, and what load_scorer raises.
    """
    device = _device(settings)
    found: dict[str, ServedJudge] = {}
    for name in settings.judge:
        scorer = load_scorer(name, device=device, services=settings.services)
        found[name] = as_served(scorer, version_of(name, revision=getattr(scorer, "revision", None)), settings)
    _check_known(settings, {label for judge in found.values() for label in judge.labels})
    return ServedJudges(found, settings.aliases)


def as_served(scorer: Scorer, version: JudgeVersion, settings: JudgeServeSettings) -> ServedJudge:
    """A loaded judge with what the settings say of it. Raises RunError if its threshold was made for other weights."""
    name = version.judge
    labels = tuple(label for label in scorer.labels if label != DISAGREEMENT)
    thresholds = {label: settings.label_thresholds.get(label, settings.threshold) for label in labels}
    moved = {} if settings.thresholds is None else thresholds_of(settings.thresholds, settings.matching)
    deciding = labels
    if name in moved:
        if labels[0] in settings.label_thresholds:
            raise ConfigError(
                f"{settings.thresholds} and label_thresholds.{labels[0]} both set a threshold of {name}: give one"
            )
        refuse_loaded(str(settings.thresholds), scorer, version, moved[name])
        thresholds[labels[0]] = moved[name].value
    if name in moved or isinstance(scorer, Ensemble):
        # The file's threshold is that of the main label: it flags the share that it was made for by that label alone.
        # An ensemble's other labels are its members, and the main one says what they say together.
        deciding = (labels[0], *(label for label in labels[1:] if label in settings.label_thresholds))

    def reopen() -> Scorer:
        return load_scorer(name, device=_device(settings), services=settings.services)

    attributes = attributes_of(labels, settings.attributes)
    again = reopen if is_online(scorer) else None
    twins = _twins(name, scorer, workers_of(settings) - 1)
    return ServedJudge(name, scorer, version, labels, attributes, thresholds, deciding, twins, again)


def _waits_for_others(scorer: Scorer) -> bool:
    if isinstance(scorer, Ensemble):
        return any(_waits_for_others(member.scorer) for member in scorer.members)
    return is_online(scorer) or isinstance(scorer, FunctionScorer)


def _twins(name: str, scorer: Scorer, number: int) -> tuple[Scorer, ...]:
    try:
        return tuple(twin for _ in range(number) if (twin := twin_of(scorer)) is not None)
    except Exception as error:
        # Copying a model of any library may fail in any way; the judge itself still serves.
        say(f"warning: {name} is served by one thread: it can't be copied ({type(error).__name__})")
        return ()


def workers_of(settings: JudgeServeSettings) -> int:
    """How many threads score at the same time, where the judges can be used so."""
    if _device(settings) != "cpu":
        return 1
    return settings.workers or min(cores(), _MOST_WORKERS)


def cores() -> int:
    """How many of the processor's cores may be used, as OMP_NUM_THREADS or torch has it."""
    import torch

    return torch.get_num_threads()


def use_cores(number: int) -> None:
    """Have torch use so many cores in this thread, and in those that come after it."""
    import torch

    if torch.get_num_threads() != number:
        torch.set_num_threads(number)


def _device(settings: JudgeServeSettings) -> str:
    from rewardlm.models.load import resolve_device

    return str(resolve_device(settings.device))


def attributes_of(labels: tuple[str, ...], declared: Mapping[str, str]) -> dict[str, str]:
    """Perspective's attributes that a judge with these labels serves, and by which label each."""
    by_name = {label.lower(): label for label in reversed(labels)}
    found = {
        attribute: by_name[name]
        for attribute, names in ATTRIBUTES.items()
        if (name := next((name for name in names if name in by_name), None)) is not None
    }
    return {**found, **{attribute: label for attribute, label in declared.items() if label in labels}}


def _check_known(settings: JudgeServeSettings, known: set[str]) -> None:
    named = {f"attributes.{key}": label for key, label in settings.attributes.items()}
    named |= {f"label_thresholds.{label}": label for label in settings.label_thresholds}
    for key, label in named.items():
        if label not in known:
            near = did_you_mean(label, known, first=True)
            there = ", ".join(sorted(known))
            raise ConfigError(f"{key}: no judge that is served has a label {label!r}: {near}expected one of {there}")
