"""The meter: prompts in, answers and scores out, written down as they come.

Answers are written before they are scored, and their scores right after. So when a killed measurement is resumed, it
asks at most one window of questions again and scores nothing twice. Answers are never all in memory: a run may have
millions.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rewardlm.config import MeasureSettings, ServicesSettings, how_asked
from rewardlm.data.dialogues import normalised
from rewardlm.data.prompts import file_of, prompts_of
from rewardlm.errors import ConfigError, DataError, RunError, ScorerError
from rewardlm.measuring.engines import (
    WINDOW,
    Cost,
    Engine,
    JudgedWindow,
    LocalEngine,
    NoAnswer,
    adapter_hash,
    judged_by_processes,
    load_model,
    questions,
    steer_folder,
    windows,
)
from rewardlm.measuring.judging import (
    describe_scorer,
    refuse_other_judges,
    score_generations,
    score_missing,
    score_records,
)
from rewardlm.measuring.model_quality import add_quality
from rewardlm.measuring.power import size_warning
from rewardlm.measuring.primary import spelt_out
from rewardlm.measuring.utility import add_utility, pending
from rewardlm.models.load import Policy, resolve_device
from rewardlm.models.processes import Processes, several, writing
from rewardlm.progress import ProgressCallback
from rewardlm.runs import Run, known_rewards, paid_for, prompts_hash, reward_lineage, trained_by
from rewardlm.scoring.lineage import text_hash
from rewardlm.scoring.load import check_judges, load_scorer
from rewardlm.scoring.pairs import load_pair_judge
from rewardlm.scoring.scorer import FailureLimit, Scorer, score_texts
from rewardlm.scoring.thresholds import recorded_thresholds
from rewardlm.stats import BoolArray
from rewardlm.steering.folder import SteerFolder
from rewardlm.types import Generation, Prompt, Verdict

# Not part of what is measured: a run may be resumed with other values of these. A suite records its own settings.
FREE_SETTINGS = (
    "device", "batch_tokens", "max_failed_share", "url", "workers", "ray_address", "suite", "utility",
    "effect",
)  # fmt: skip
# Answers that are written down at a time.
_BATCH = 32


def measure(
    settings: MeasureSettings,
    out: Path,
    *,
    report: ProgressCallback | None = None,
    say: Callable[[str], None] | None = None,
) -> Run:
    """Sample and score answers into the run ``out``; a finished run is returned as it is, a killed one is resumed.

    ``report(done, total, what)`` is called as answers come, and ``say`` before that if the measurement is too small to
    see ``settings.effect``. Raises RewardLMError if prompts, model or judges can't
    be used, ScorerError once more than ``max_failed_share`` of the answers can't be scored, and RunError while another
    command writes to ``out``. With several processes (torchrun, accelerate launch), each answers and judges its share,
    and the first writes.
    """
    if settings.engine != "local" and several():
        raise ConfigError(
            f"engine {settings.engine!r} already asks for many answers at once: start one process, without a launcher"
        )
    with writing(out, settings.device) as processes:
        heard = processes.is_main
        return _measure(settings, out, processes, report if heard else None, say if heard else None)


def _measure(
    settings: MeasureSettings,
    out: Path,
    processes: Processes,
    report: ProgressCallback | None,
    say: Callable[[str], None] | None,
) -> Run:
    label = settings.label or _default_label(settings)
    recorded = settings.model_dump(mode="json")
    run = processes.first(
        lambda: Run.start(
            out,
            kind="measure",
            label=label,
            settings=recorded,
            free=(*FREE_SETTINGS, *how_asked(recorded)),
        )
    )
    folder = steer_folder(settings)
    if run.finished:
        _check_weights(run, "adapter_hash", adapter_hash(settings))
        _check_treatment(run, settings, folder)
        return processes.first(lambda: _with_suite(run, settings, report))
    left = processes.first(lambda: pending(run, settings))
    check_judges(settings.scorer, settings.services)
    device = processes.device or str(resolve_device(settings.device))
    scorers = [load_scorer(name, device=device, services=settings.services) for name in settings.scorer]
    pair_judge = None
    if settings.counter_narrative is not None:
        pair_judge = load_pair_judge(settings.counter_narrative, device=device)
    begun = "prompts_hash" in run.meta
    run = processes.first(lambda: _store_prompts(run, settings, scorers, device))
    if say is not None and begun and processes.is_main:
        changed = _changed_since(run, settings)
        if changed is not None:
            say(changed)
    if say is not None and not begun:
        small = size_warning(settings, run.prompts(), toxic_by=run.meta["toxic_by"])
        if small is not None:
            say(small)
    # Before a model is loaded: answers of two models must not end up in one table.
    _check_weights(run, "adapter_hash", adapter_hash(settings))
    _check_treatment(run, settings, folder)
    policy: Policy | None = None
    local: LocalEngine | None = None
    with ExitStack() as held:
        engine: Engine
        if settings.engine == "openai":
            from rewardlm.measuring.served import ServedEngine

            served = ServedEngine(settings, run.label)
            held.callback(served.close)
            engine = served
        else:
            policy = load_model(settings.model_copy(update={"device": device}))
            local = LocalEngine(settings, run.label, policy)
            if settings.engine == "local":
                held.enter_context(local.ready())
            engine = local
        described = engine.describe()
        _check_weights(run, "model_hash", described["model_hash"])

        # At strength 0, no judge of the steering took part.
        took_part = folder if (described.get("treatment") or {}).get("strength") else None

        def begin() -> None:
            refuse_other_judges(run, scorers)
            run.update(
                **recorded_thresholds(run, scorers, settings.thresholds, settings.matching),
                **described,
                rewards=_rewards(settings, took_part),
                reward_lineage=_lineages(settings, took_part),
                paid_for=paid_for(settings.adapter) if settings.adapter else [],
                trained_by=trained_by(settings.adapter) if settings.adapter else None,
                scorers=_described(run, scorers, settings),
                samples=settings.samples,
                pair_judge=pair_judge and pair_judge.describe(),
                processes=processes.size,
                **_prompts_fitted_on(run, took_part),
                **_primary(run, settings, scorers, took_part),
            )

        processes.first(begin)
        _sample_and_score(run, settings, engine, scorers, processes, report)
        described = engine.describe()

    def end() -> Run:
        run.update(**described)
        if local is not None:
            add_utility(run, settings, local, scorers, left, report=report)
        add_quality(
            run,
            similarity=settings.similarity,
            fluency=policy if settings.perplexity else None,
            pair_judge=pair_judge,
            sample=settings.quality_sample,
            seed=settings.seed,
            device=device,
            report=report,
        )
        run.update(status="finished")
        return run

    return processes.first(end)


def _with_suite(run: Run, settings: MeasureSettings, report: ProgressCallback | None) -> Run:
    """A finished run, to which the suite is added if it is asked for and isn't there."""
    if left := pending(run, settings):
        device = str(resolve_device(settings.device))
        engine = LocalEngine(settings, run.label, load_model(settings.model_copy(update={"device": device})))
        _check_weights(run, "model_hash", engine.describe()["model_hash"])
        scorers = []
        if left.judges:
            scorers = [load_scorer(name, device=device, services=settings.services) for name in settings.scorer]
            refuse_other_judges(run, scorers)
        add_utility(run, settings, engine, scorers, left, report=report)
    return run


def _store_prompts(run: Run, settings: MeasureSettings, scorers: Sequence[Scorer], device: str) -> Run:
    """Load the prompts, judge them where needed, and write them down, unless the run has them."""
    if "prompts_hash" in run.meta and any(True for _ in run.read("prompts")):
        return run
    loaded = prompts_of(settings)
    prompts = loaded.prompts
    if not prompts:
        raise DataError(f"{settings.prompts} (part {settings.part}) has no prompts")
    toxic_by = settings.toxic_by or (
        "dataset" if any(prompt.toxicity is not None for prompt in prompts) else settings.scorer[0]
    )
    if toxic_by == "dataset":
        if all(prompt.toxicity is None for prompt in prompts):
            raise ConfigError(f"toxic_by is 'dataset', but {settings.prompts} has no scores: name a scorer")
    else:
        prompts = _judge_prompts(
            prompts, toxic_by, scorers, device, settings.services, FailureLimit(settings.max_failed_share)
        )
    run.replace("prompts", [])
    run.append("prompts", prompts)
    run.update(
        prompts={
            "source": settings.prompts,
            "part": settings.part,
            "n": len(prompts),
            "dropped": loaded.dropped,
        },
        prompts_hash=prompts_hash(prompts),
        toxic_by=toxic_by,
    )
    return run


def _changed_since(run: Run, settings: MeasureSettings) -> str | None:
    """A sentence where a file of prompts isn't what it was when the run began; a run goes on with its own copy."""
    if file_of(settings.prompts) is None:
        return None
    try:
        same = prompts_hash(prompts_of(settings).prompts) == run.meta["prompts_hash"]
    except DataError as error:
        return f"{error}; the run goes on with its own copy of the prompts"
    if same:
        return None
    return (
        f"{settings.prompts} has changed since the run began, which goes on with its own copy of the prompts; to "
        "measure on the new ones, choose another --out"
    )


def _judge_prompts(
    prompts: list[Prompt],
    name: str,
    scorers: Sequence[Scorer],
    device: str,
    services: ServicesSettings,
    limit: FailureLimit,
) -> list[Prompt]:
    judge = next((scorer for scorer in scorers if scorer.name == name), None)
    judge = judge or load_scorer(name, device=device, services=services)
    verdicts = score_texts(judge, [prompt.text for prompt in prompts], limit=limit)
    limit.close()
    return [
        Prompt(
            prompt.id,
            prompt.turns,
            prompt.source,
            verdict.values.get(judge.labels[0]),
            prompt.challenging,
        )
        for prompt, verdict in zip(prompts, verdicts, strict=True)
    ]


def _sample_and_score(
    run: Run,
    settings: MeasureSettings,
    engine: Engine,
    scorers: Sequence[Scorer],
    processes: Processes,
    report: ProgressCallback | None,
) -> None:
    total = sum(1 for _ in run.read("prompts")) * settings.samples
    # Counted by the process that writes.
    limits = [FailureLimit(settings.max_failed_share) for _ in scorers]
    have = processes.first(lambda: _catch_up(run, settings, total, scorers, limits))
    unanswered = FailureLimit(settings.max_failed_share, what="questions got no answer")
    refused = _refused_before(run, unanswered, int(have.sum()))
    done = int(have.sum()) + len(refused)
    if report is not None:
        report(done, total, "answers")
    if settings.engine == "ray" or processes.size > 1:
        _by_several(run, settings, engine, scorers, limits, have, processes, report)
    else:
        if isinstance(engine, LocalEngine):
            engine.cost = Cost(**run.meta.get("cost", {}))
        for number, window in enumerate(windows(questions(run.each_prompt(), settings))):
            there = have[number * WINDOW : (number + 1) * WINDOW]
            known = {row for row, question in enumerate(window) if there[row] or question.id in refused}
            answers = _counted(run, engine.answers(window, known), unanswered, refused)
            for batch in _batches(answers):
                done += len(batch)
                run.append("generations", batch)
                score_generations(run, scorers, batch, limits)
                if report is not None:
                    report(done, total, "answers")
            if isinstance(engine, LocalEngine):
                run.update(
                    truncated_prompts=engine.truncated,
                    batch_tokens_used=engine.budget.size,
                    cost=dataclasses.asdict(engine.cost),
                )
        unanswered.close()

    def end() -> None:
        for limit in limits:
            limit.close()
        run.update(
            unanswered=dict(Counter(refused.values())),
            scorers=_described(run, scorers, settings, finished=True),
        )

    processes.first(end)


def _described(
    run: Run, scorers: Sequence[Scorer], settings: MeasureSettings, *, finished: bool = False
) -> list[dict[str, object]]:
    """What the run records of its judges. Dates on which services were asked are kept from what it recorded before."""
    known = {entry["name"]: entry for entry in run.meta.get("scorers", [])}
    return [
        describe_scorer(
            scorer,
            settings.max_failed_share,
            run.each_generation() if finished else (),
            prompts=run.each_prompt(),
            before=known.get(scorer.name),
        )
        for scorer in scorers
    ]


def _batches(answers: Iterator[Generation]) -> Iterator[list[Generation]]:
    """``_BATCH`` answers at a time. Those that came before an error or an interrupt are not lost: they are yielded
    first.
    """
    batch: list[Generation] = []
    try:
        for answer in answers:
            batch.append(answer)
            if len(batch) == _BATCH:
                yield batch
                batch = []
    except (Exception, KeyboardInterrupt):
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def _catch_up(
    run: Run,
    settings: MeasureSettings,
    total: int,
    scorers: Sequence[Scorer],
    limits: Sequence[FailureLimit],
) -> BoolArray:
    """Bool[prompts × samples]: which answers a resumed run already has. Those without a score are scored first."""
    have = np.zeros(total, dtype=np.bool_)
    if not any(True for _ in run.read("generations")):
        return have
    score_missing(run, scorers, limits)
    rows = {record["id"]: row for row, record in enumerate(run.read("prompts"))}
    for record in run.read("generations"):
        if record["prompt_id"] not in rows or not 0 <= record["sample"] < settings.samples:
            raise RunError(
                f"{run.path}: generation {record['id']!r:.60} answers prompt {record['prompt_id']!r:.60}, sample "
                f"{record['sample']}, which this run doesn't ask: it was changed by hand, put the line back or measure "
                "again"
            )
        have[rows[record["prompt_id"]] * settings.samples + record["sample"]] = True
    return have


def _refused_before(run: Run, limit: FailureLimit, answers: int) -> dict[str, str]:
    """By question, why the server will never answer it; ``limit`` counts these and the ``answers`` that the run has.

    They are not asked again, unless there are more than ``limit`` allows. A run must not finish only because a server
    that refuses half of all questions was asked often enough, and the server may have been repaired since.
    """
    refused = {record["id"]: str(record["reason"]) for record in run.read("unanswered")}
    limit.seen, limit.failed = answers + len(refused), len(refused)
    limit.first_reason = next((f"the server: {reason}" for reason in refused.values()), None)
    try:
        limit.close()
    except ScorerError:
        run.replace("unanswered", [])
        limit.seen, limit.failed, limit.first_reason = answers, 0, None
        return {}
    return refused


def _counted(
    run: Run, answers: Iterator[Generation | NoAnswer], limit: FailureLimit, refused: dict[str, str]
) -> Iterator[Generation]:
    """The answers among ``answers``. A question that is refused for good is written down. One that failed for now is
    asked again when the run is resumed. If there are too many of both, the run ends.
    """
    for answer in answers:
        if isinstance(answer, Generation):
            limit.add("the server", [Verdict({"answer": 1.0})])
            yield answer
            continue
        refused[answer.id] = answer.reason
        if answer.final:
            run.append("unanswered", [{"id": answer.id, "reason": answer.reason}])
        limit.add("the server", [Verdict(reason=answer.reason, failed=True)])


def _by_several(
    run: Run,
    settings: MeasureSettings,
    engine: Engine,
    scorers: Sequence[Scorer],
    limits: Sequence[FailureLimit],
    have: BoolArray,
    processes: Processes,
    report: ProgressCallback | None,
) -> None:
    """Store windows that are answered and judged elsewhere: by Ray's workers, or by these processes side by side."""
    starts = [start for start in range(0, have.size, WINDOW) if not have[start : start + WINDOW].all()]
    prompts = run.prompts()
    rows = {prompt.id: row for row, prompt in enumerate(prompts)}

    def keep(judged: JudgedWindow) -> None:
        # A window that a kill interrupted is there in part.
        fresh = [
            number
            for number, answer in enumerate(judged.generations)
            if not have[rows[answer.prompt_id] * settings.samples + answer.sample]
        ]
        have[judged.start : judged.start + WINDOW] = True
        batch = [judged.generations[number] for number in fresh]
        run.append("generations", batch)
        for scorer, limit, verdicts in zip(scorers, limits, judged.verdicts, strict=True):
            kept = [verdicts[number] for number in fresh]
            run.append("scores", score_records(scorer.name, scorer.labels, batch, kept))
            limit.add(scorer.name, kept)
        run.update(truncated_prompts=int(run.meta.get("truncated_prompts", 0)) + judged.truncated)
        if report is not None:
            report(int(have.sum()), have.size, "answers")

    if processes.size > 1:
        assert isinstance(engine, LocalEngine)
        found = judged_by_processes(settings, engine, scorers, prompts, starts, processes)
    else:
        from rewardlm.measuring.sharded import judged_by_ray

        found = judged_by_ray(settings, run.label, prompts, starts)
    for judged in found if starts else ():
        processes.first(partial(keep, judged))


def _rewards(settings: MeasureSettings, folder: SteerFolder | None) -> list[str] | None:
    """The judges that the model was trained on, or is steered by: a gain by these proves nothing. None if nobody knows,
    as for a model behind a server that isn't steered.
    """
    if settings.engine == "openai":
        return None if folder is None else [judge.name for judge in folder.record.judges]
    known = [] if settings.adapter is None else known_rewards(settings.adapter)
    steered_by = [] if folder is None else [judge.name for judge in folder.record.judges]
    return None if known is None else list(dict.fromkeys([*known, *steered_by]))


def _lineages(settings: MeasureSettings, folder: SteerFolder | None) -> dict[str, Any]:
    """Of each of these judges, what it learnt from."""
    found = reward_lineage(settings.adapter) if settings.adapter else {}
    steered_by = [] if folder is None else folder.record.judges
    return {**found, **{judge.name: judge.lineage for judge in steered_by if judge.lineage is not None}}


def _prompts_fitted_on(run: Run, folder: SteerFolder | None) -> dict[str, int]:
    """How many of the run's prompts a steering was fitted on; nothing for one that learnt from none."""
    if folder is None or folder.record.run is None:
        return {}
    known = set(folder.record.run["prompt_hashes"])
    texts = {normalised(prompt.text) for prompt in run.each_prompt()}
    return {"prompts_fitted_on": sum(text_hash(text) in known for text in texts)}


def _primary(
    run: Run, settings: MeasureSettings, scorers: Sequence[Scorer], folder: SteerFolder | None
) -> dict[str, dict[str, str]]:
    """The primary outcome with all of its parts, if any was asked for; it is fixed before there is an answer."""
    asked = settings.primary.model_dump()
    if not any(asked.values()) or "primary" in run.meta:
        return {}
    return {"primary": spelt_out(asked, [scorer.name for scorer in scorers], _rewards(settings, folder) or [])}


def _default_label(settings: MeasureSettings) -> str:
    label = settings.model
    if settings.adapter is not None:
        run = settings.adapter.parent if settings.adapter.name == "adapter" else settings.adapter
        label = run.name
        if settings.adapter_strength is not None:
            label += f" × {settings.adapter_strength:g}"
    if settings.steer is not None:
        strength = "" if settings.strength is None else f" {settings.strength:g}"
        label += f" + {settings.steer.name}{strength}"
    return label


def _check_treatment(run: Run, settings: MeasureSettings, folder: SteerFolder | None) -> None:
    recorded = run.meta.get("treatment")
    if recorded is None or folder is None:
        return
    for name, then, now in (
        ("hash", recorded["hash"][:12], folder.record.hash[:12]),
        ("strength", f"{recorded['strength']:g}", f"{folder.record.at(settings.strength):g}"),
    ):
        if then != now:
            raise RunError(
                f"{run.path} was begun with another steer folder ({name} {then}, now {now}): choose another --out"
            )


def _check_weights(run: Run, key: Literal["model_hash", "adapter_hash"], found: str | None) -> None:
    recorded = run.meta.get(key)
    if recorded is not None and found is not None and recorded != found:
        raise RunError(
            f"{run.path} was begun with other weights ({key} {recorded[:12]}…, now {found[:12]}…): choose another --out"
        )
