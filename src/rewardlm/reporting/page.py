"""The report: one HTML file that explains itself, opens offline, and can be sent to a colleague.

``build_report`` gathers what run directories hold; ``render_page`` turns it into HTML and does nothing else; what keeps
hostile texts harmless is in ``shell.py``. A page about judges alone is ``judge_page``'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rewardlm import formats
from rewardlm.config import CompareSettings, FrontierSettings
from rewardlm.errors import RunError
from rewardlm.interpreting.findings import Interpretation
from rewardlm.measuring.comparison import (
    UTILITY_FIELDS,
    AuditWarning,
    Change,
    Comparison,
    ModelSummary,
    Split,
    main_names,
)
from rewardlm.measuring.frontier import Frontier, frontier, is_point_of_a_curve
from rewardlm.measuring.metrics import HIGH_ABOVE, LOW_BELOW, bucket_name
from rewardlm.reporting import (
    coloured_answers,
    corrected,
    figures,
    frontier_page,
    headline,
    interpretation,
    intervals,
    judge_page,
    notes,
    severity,
    utility,
)
from rewardlm.reporting import flows as redrawn
from rewardlm.reporting.change_figure import changes_figure, changes_in_words
from rewardlm.reporting.examples import UNCHANGED, Example, Kind, choose_examples
from rewardlm.reporting.explorer import ASSETS as EXPLORER_ASSETS
from rewardlm.reporting.explorer import ExplorerData, answers_for_explorer
from rewardlm.reporting.names import CHANGE_SPLITS, OF_SPLIT, SPLITS, WARNINGS
from rewardlm.reporting.shell import render, short, side_by_side, write_page
from rewardlm.reporting.subjects import BEING, DOING, Subject, described, kind_of_run
from rewardlm.reporting.training import training_records, training_sections
from rewardlm.reporting.verdict import heading, verdicts
from rewardlm.runs import TRAININGS, Run, expand
from rewardlm.types import Prompt

_QUALITY = (
    (
        "counter_narrative_fraction",
        "Counter-narratives",
        "answers to toxic prompts that oppose them, on topic; with shuffled prompts in brackets",
        "share",
    ),
    (
        "counter_narrative_corrected",
        "Counter-narratives, corrected",
        "for the judge’s known errors, with its own uncertainty in the 95 % interval",
        "corrected",
    ),
    ("empty_fraction", "Empty answers", "a silent model is never toxic", "percent"),
    ("refusal_fraction", "Refusals", "declining to answer is not answering better", "percent"),
    ("other_script_fraction", "Answers in another script", "than the prompt’s; few judges can read it", "percent"),
    ("non_latin_fraction", "Answers not in Latin letters", "", "percent"),
    ("repetition", "Repetitive answers", "one 4-gram makes up half of the answer or more", "percent"),
    ("comparable_fraction", "Comparable answers", "none of the above", "percent"),
    ("truncated_fraction", "Answers cut off", "at the longest length allowed, before their end", "percent"),
    ("mean_words", "Words an answer", "", "number"),
    ("distinct_2", "Distinct 2-grams", "of one prompt’s answers, over their words", "score"),
    ("prompt_similarity", "Similarity with the prompt", "cosine; with shuffled prompts in brackets", "similarity"),
    ("perplexity", "Perplexity", "under the base model; lower is more fluent", "number"),
)
# By task of ``measure --suite utility``.
_UTILITY = {
    "hellaswag": ("HellaSwag", "right guesses of how a scene goes on, of four; by chance 25 %"),
    "piqa": ("PIQA", "right guesses of which of two ways does it; by chance 50 %"),
    "boolq": ("BoolQ", "right answers, yes or no, to questions about a passage; always “yes” gets about 62 %"),
    "mmlu": ("MMLU", "right answers to exam questions, of four; by chance 25 %"),
    "wikitext": ("WikiText", "the model’s own perplexity per word of articles; lower is better"),
}
_FATAL = {"prompts_differ", "weights_differ"}
# Rows of a judge's main table.
_TABLES: dict[str, Split] = {"All prompts": "all", "Toxic prompts": "toxic_prompts"}
# Headings of the kinds of examples, and what each is.
_KINDS: dict[Kind, tuple[str, str]] = {
    "large": ("A large fall", "From the largest third of all falls."),
    "typical": ("A typical fall", "From the middle third of all falls."),
    "counter": ("A counter-narrative", "The last model opposes a toxic prompt, as the judge of pairs sees it."),
    "unchanged": ("Hardly changed", f"The score moved by less than {UNCHANGED}."),
    "worse": ("Got worse", f"The score rose by {UNCHANGED} or more."),
}


def render_page(
    found: Comparison,
    *,
    title: str,
    examples: Sequence[Example],
    training: Mapping[str, Sequence[Mapping[str, Any]]],
    about: Mapping[str, Any],
    judging: Mapping[str, Any] | None = None,
    interpretations: Sequence[tuple[str, Interpretation]] = (),
    explorer: ExplorerData | None = None,
    frontier: Frontier | None = None,
) -> str:
    """The page as one HTML text.

    ``title`` says what the page is about; its heading is the verdict. ``examples`` are those of ``choose_examples``;
    ``training`` gives the records of metrics.jsonl by a run's label.
    ``about`` says how it was measured; all keys are optional:
    ``models`` [{label, kind (of ``subjects``), model, adapter, rewards (None: not recorded), settings, environment}],
    ``prompts`` {source, number, toxic, toxic_by, hash}, ``judges`` [{name, text}],
    ``examples_by`` {judge, from, to; pairs, fell, rose, unchanged: how many there are},
    ``notes`` and ``limits`` (lists of sentences). ``judging`` is what ``judge_page.judging``
    makes of evaluations of judges, shown in a section of its own, and ``interpretations`` are what ``interpret``
    found, each with the run's label. ``explorer`` holds all answers, for the page's search.
    ``frontier`` compares steered models with the others.
    """
    rewards = {model["label"]: model.get("rewards") for model in about.get("models", [])}
    subjects = described(about.get("models", []), [model.label for model in found.models])
    said = verdicts(found, subjects)
    judges = _judges(found, rewards)
    findings = headline.findings(found, rewards)
    if found.primary is not None and found.primary.metric != "toxic_fraction":
        of_primary = headline.findings(found, rewards, found.primary.metric)
        findings += [finding for finding in of_primary if finding.primary]
    split = "all" if found.primary is None else found.primary.split
    cards = _cards(findings, judges, split)
    groups = _groups_of_changes(cards, subjects)
    return render(
        "page.html.j2",
        {
            "percent": formats.percent,
            "counter_share": notes.counter_share,
            "points": formats.points,
            "interval": formats.interval_in_column,
            "score": formats.number,
            "signed": formats.signed_as_shown,
            "count": lambda value: formats.number(value, ","),
            "p_value": formats.p_number,
            "ends": formats.interval_of_points,
            "bucket": _bucket,
            "split_name": SPLITS.get,
            "split_of": OF_SPLIT.get,
            "interval_number": intervals.number_text,
            "interval_points": intervals.points_text,
            "interval_share": intervals.share_text,
            "interval_plain": intervals.plain_text,
            "visible": interpretation.visible,
            "shown_token": coloured_answers.shown_token,
        },
        title=title,
        heading=heading(said),
        verdicts=said,
        changes=changes_figure(groups) if groups else None,
        changes_in_words=changes_in_words(groups),
        changes_of=OF_SPLIT[split],
        beings={model["label"]: BEING[model.get("kind") or "unknown"] for model in about.get("models", [])},
        judging=judging or judge_page.judging([]),
        models=found.models,
        judges=judges,
        corrected={"rows": corrected.rows(found), "notes": corrected.notes(found)},
        paragraphs=headline.sentences(findings, [judge["name"] for judge in judges]),
        primary=headline.primary_text(found),
        cards=cards,
        warnings=_warnings(found.warnings),
        confidence=_confidence(found.models, judges),
        severity=_severity(found, [judge["name"] for judge in judges]),
        flows=_flows(found, judges),
        quality=[*_quality(found.models), *_utility(found.models)],
        interpretations=interpretation.sections(interpretations),
        training=training_sections(training),
        groups=_groups(examples),
        about=_about(about, found),
        kept=_kept(found.models),
        kept_margin=utility.margin_text(found.settings.utility_margin),
        group_tables=utility.group_tables(found.models),
        counter=any(model.quality.counter_narrative_fraction is not None for model in found.models),
        counter_notes=notes.quality_notes(found.models),
        names=found.scorers,
        reward_names={name for name in found.scorers if headline.was_reward(name, list(rewards.values()))},
        splits=list(SPLITS),
        limits={"low": LOW_BELOW, "high": HIGH_ABOVE},
        explorer=None if explorer is None else explorer.summary(),
        assets=() if explorer is None else EXPLORER_ASSETS,
        frontier=None if frontier is None else frontier_page.section(frontier),
    )


def build_report(
    paths: Sequence[Path],
    out: Path,
    *,
    title: str | None = None,
    settings: CompareSettings | None = None,
    found: Comparison | None = None,
) -> Path:
    """Write the page of these run directories to ``out`` and return it. The first measured run is the baseline.

    Runs of kind ``measure`` and ``import`` are compared; trainings (``runs.TRAININGS``, ``judge``) give curves; an
    ``experiment`` stands for the runs that it lists. Evaluations of judges get a section, or a page of their own if no
    run was measured. Interpretations get a section too; if no measured run is given, the page shows the runs that they
    look into. ``found`` is the comparison of the measured runs, if you have made it already.

    Raises RunError if nothing was measured or a directory is no run, and what ``compare`` raises if the runs can't be
    compared.
    """
    from rewardlm.measuring.compare import compare

    runs = list(expand(paths))
    measured = [run for run in runs if run.meta["kind"] in ("measure", "import")]
    trained = [run for run in runs if run.meta["kind"] in (*TRAININGS, "judge")]
    evaluated = [run for run in runs if run.meta["kind"] == judge_page.KIND]
    interpreted = [run for run in runs if run.meta["kind"] == interpretation.KIND]
    if interpreted and not measured:
        measured = [Run.open(path) for path in interpretation.looked_into(interpreted)]
    if evaluated and not measured:
        return judge_page.build(evaluated, trained, out, title=title)
    if not measured:
        raise RunError(
            f"nothing to report in {', '.join(map(str, paths))}: expected at least one measured run; "
            "make one with rewardlm measure"
        )
    found = found or compare([run.path for run in measured], **(settings or CompareSettings()).model_dump())
    about = _describe(measured, found)
    about["notes"] = [
        f"{run.path.name} is a run of kind {run.meta['kind']}, which this page doesn’t show."
        for run in runs
        if not any(run in shown for shown in (measured, trained, evaluated, interpreted))
    ]
    examples: list[Example] = []
    rewards = {model["label"]: model["rewards"] for model in about["models"]}
    judges = _judges(found, rewards)
    labels = [model.label for model in found.models]
    if len(measured) > 1 and judges:
        last = labels[-1]
        related = headline.relatives(found)
        names = [judge["name"] for judge in judges]
        judge = min(names, key=lambda name: bool(headline.was_reward(name, [rewards[last]])) or (name, last) in related)
        chosen = choose_examples(measured, judge, labels=labels)
        examples = list(chosen.examples)
        about["examples_by"] = {"judge": judge, "from": labels[0], "to": last, "pairs": chosen.pairs}
        about["examples_by"] |= {"fell": chosen.fell, "rose": chosen.of_kind["worse"]}
        about["examples_by"] |= {"unchanged": chosen.of_kind["unchanged"]}
    page = render_page(
        found,
        title=title or _subject(about),
        examples=examples,
        training=training_records(trained),
        about=about,
        judging=judge_page.judging(evaluated),
        interpretations=[(run.label, interpretation.load(run)) for run in interpreted],
        explorer=answers_for_explorer(
            measured,
            interpreted,
            judge=about.get("examples_by", {}).get("judge"),
            threshold=found.settings.threshold,
            inclusive=found.settings.inclusive,
            thresholds={name: own.value for name, own in found.settings.thresholds.items()},
        ),
        frontier=_frontier(measured, found),
    )
    return write_page(page, out)


def _frontier(measured: Sequence[Run], found: Comparison) -> Frontier | None:
    """Where a run is steered, or its adapter has another strength, and a judge has seen all answers."""
    shared = set.intersection(*({entry["name"] for entry in run.meta.get("scorers", [])} for run in measured))
    if not shared or not any(map(is_point_of_a_curve, measured)):
        return None
    primary = None if found.primary is None or found.primary.scorer not in shared else found.primary.scorer
    settings = FrontierSettings(scorer=primary, threshold=found.settings.threshold, seed=found.settings.seed)
    return frontier([run.path for run in measured], settings)


def _subject(about: Mapping[str, Any]) -> str:
    """A title for a page that was given none: the models, and the prompts that they were asked."""
    names = dict.fromkeys(str(model["model"] or model["label"]) for model in about["models"])
    prompts = about["prompts"]
    return f"{', '.join(names)} on {prompts['number']:,} prompts of {prompts['source']}"


def _describe(measured: Sequence[Run], found: Comparison) -> dict[str, Any]:
    """``about`` of measured runs: what their run.json files say, and what their sizes and judges can't show."""
    first = measured[0]
    prompts = first.prompts()
    samples = max((int(record["sample"]) for record in first.read("generations")), default=0) + 1
    limits = [
        f"{len(prompts):,} prompts with {samples} {'answer' if samples == 1 else 'answers'} each: an interval is the "
        "range of effects that these data can’t tell apart; it says nothing about other prompts, other languages or "
        "longer conversations."
    ]
    lexical = [name for name in found.scorers if name.split(".")[0] in ("lexical", "lexical2")]
    if lexical:
        limits.append(
            f"{' and '.join(lexical)} {'judges' if len(lexical) == 1 else 'judge'} by words. Hate without swear words "
            "escapes such a judge, and an answer that quotes hate in order to oppose it may be punished."
        )
    limits.append("Every judge has errors and biases of its own; a change that only one judge sees is weak evidence.")
    if len(measured) > 1:
        limits.append(
            "This page runs many tests. Adjusted p-values are corrected for that (Holm): each measure, such as the "
            "toxic share, over all models, judges and splits, but not over the other measures. The primary outcome, "
            "the one that was chosen to count, is corrected over the models alone."
        )
    return {
        "models": [
            {
                "label": model.label,
                "kind": kind_of_run(run),
                "model": short(run.meta.get("model")),
                "adapter": short(run.meta.get("adapter")),
                "rewards": run.meta.get("rewards"),
                "settings": run.meta["settings"],
                "environment": run.meta.get("environment", {}),
            }
            # compare numbers duplicate labels, so the page looks models up by its labels.
            for run, model in zip(measured, found.models, strict=True)
        ],
        "prompts": {
            "source": _source(first, prompts),
            "number": len(prompts),
            "toxic_by": first.meta.get("toxic_by"),
            "hash": first.meta.get("prompts_hash"),
        },
        "judges": _judge_notes(measured),
        "limits": limits,
    }


def _source(run: Run, prompts: Sequence[Prompt]) -> str:
    """Where the prompts came from: the source that was asked for. For an import, the one that each prompt names."""
    asked = run.meta.get("prompts")
    if not isinstance(asked, Mapping):
        return ", ".join(dict.fromkeys(prompt.source for prompt in prompts))
    part = asked.get("part", "all")
    return f"{short(asked.get('source'))}" + ("" if part == "all" else f", the part to {part}")


def _judge_notes(measured: Sequence[Run]) -> list[dict[str, str]]:
    """Labels and revision of each judge, where a run has recorded more than its name."""
    notes: dict[str, str] = {}
    for run in measured:
        for scorer in run.meta.get("scorers", []):
            if isinstance(scorer, Mapping):
                labels = ", ".join(scorer.get("labels") or [])
                revision = f"; revision {scorer['revision']}" if scorer.get("revision") else ""
                notes.setdefault(scorer["name"], f"scores {labels}{revision}." if labels else "")
    return [{"name": name, "text": text} for name, text in notes.items()]


def _judges(found: Comparison, rewards: Mapping[str, Sequence[str] | None]) -> list[dict[str, Any]]:
    """The judges that get a table: no side labels (NAME.label), those that were nobody's reward first."""
    mains = main_names(found.scorers)
    judges = [
        {
            "name": name,
            "changes": _changes(found, name),
            "equal": " ".join(
                f"{where}: {text}"
                for where, split in _TABLES.items()
                if (text := notes.equal_samples_note(found.models, split, name))
            ),
            "maxima": notes.maxima_note([change for change in found.comparisons if change.scorer == name]),
            "reward_of": [
                model.label for model in found.models if headline.was_reward(name, [rewards.get(model.label)])
            ],
            "disagreement": [
                (model.label, model.disagreement[name]) for model in found.models if name in model.disagreement
            ],
        }
        for name in found.scorers
        if name in mains
    ]
    return sorted(judges, key=lambda judge: bool(judge["reward_of"]))


def _cards(
    found: Sequence[headline.Finding], judges: Sequence[Mapping[str, Any]], split: str
) -> list[list[headline.Finding]]:
    """A row of cards for each model: how its toxic share changed in ``split``, by every judge, in the judges' order."""
    order = [judge["name"] for judge in judges]
    rows: dict[tuple[str, str], list[headline.Finding]] = {}
    for finding in found:
        if finding.split == split and finding.metric == "toxic_fraction" and finding.scorer in order:
            rows.setdefault((finding.baseline, finding.model), []).append(finding)
    return [
        sorted(row, key=lambda finding: (bool(finding.is_reward) or finding.is_relative, order.index(finding.scorer)))
        for row in rows.values()
    ]


def _groups_of_changes(
    cards: Sequence[Sequence[headline.Finding]], subjects: Sequence[Subject]
) -> list[tuple[str, Sequence[headline.Finding]]]:
    """The cards as groups of the first picture, each under a heading that says what the model is."""
    doing = {subject.label: f"{subject.label}: {DOING[subject.kind]}" for subject in subjects if subject.kind in DOING}
    return [(doing.get(row[0].model, row[0].model), row) for row in cards]


def _warnings(warnings: Sequence[AuditWarning]) -> list[dict[str, Any]]:
    """The warnings with their headings; those that make the comparison worthless come first."""
    shown = [
        {
            "code": warning.code,
            "model": warning.model,
            "message": warning.message,
            "heading": WARNINGS.get(warning.code, warning.code),
            "fatal": warning.code in _FATAL,
        }
        for warning in warnings
    ]
    return sorted(shown, key=lambda warning: not warning["fatal"])


def _severity(found: Comparison, judges: Sequence[str]) -> dict[str, Any] | None:
    """What the page says of every threshold; None where no judge scored anything."""
    shown = found.main_labels()
    if not shown.severity:
        return None
    return {
        "sentences": severity.sentences(shown, judges),
        "pictures": severity.pictures(shown, judges),
        "names": severity.level_names(shown),
        "rows": severity.level_rows(shown, judges),
    }


def _confidence(models: Sequence[ModelSummary], judges: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    ends = []
    for model in models:
        for judge in judges:
            for split in _TABLES.values() if judge["name"] in model.scorers else ():
                summary = model.scorers[judge["name"]][split]
                ends.append((summary.toxic_fraction_ci95 or (0, summary.toxic_fraction or 0))[1])
    # Room for the marks and their numbers at the right end; a judge that finds nothing still gets an axis.
    x_max = min(max([100 * end * 1.12 for end in ends] + [2.0]), 104)
    return [
        {
            "judge": judge,
            "figure": figures.confidence_figure(models, judge["name"], x_max),
            "caption": _confidence_caption(models, judge["name"]),
        }
        for judge in judges
    ]


def _confidence_caption(models: Sequence[ModelSummary], scorer: str) -> str:
    shares = [(model.scorers[scorer]["all"].toxic_fraction, model.label) for model in models if scorer in model.scorers]
    known = [(share, label) for share, label in shares if share is not None]
    if not known:
        return "This judge scored nothing."
    lowest, highest = min(known), max(known)
    words = "; ".join(f"{label} {formats.percent(share)}" for share, label in known)
    least = f" Lowest is {lowest[1]}." if lowest[0] < highest[0] else " All models have the same share."
    return f"Toxic share of all answers: {words}.{least} Lines are 95 % intervals."


def _flows(found: Comparison, judges: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    flows = []
    for judge in judges:
        for change in found.comparisons:
            if change.scorer != judge["name"] or change.split != "all":
                continue
            pairs = sum(map(sum, change.flow))
            if pairs + change.flow_unscored == 0:
                continue
            again = redrawn.redrawn_counts(change)
            flows.append(
                {
                    "judge": judge,
                    "change": change,
                    "figure": figures.flow_figure(change.from_, change.to, redrawn.counts(change)),
                    "again": None
                    if again is None
                    else figures.flow_figure(change.from_, f"{change.from_}, drawn again", again),
                    "rows": redrawn.rows(change),
                    "parts": redrawn.parts(change),
                    "caption": _flow_caption(change, pairs),
                }
            )
    return flows


def _flow_caption(change: Change, pairs: int) -> str:
    down = sum(change.flow[a][b] for a in range(3) for b in range(a))
    up = sum(change.flow[a][b] for a in range(3) for b in range(a + 1, 3))
    caption = f"Of {pairs:,} pairs scored in both, {down:,} moved to a lower bucket and {up:,} to a higher one."
    if not change.flow_unscored:
        return caption
    lost = change.flow_to_unscored[2]
    high = f", {lost:,} of them high before" if lost else ""
    return f"{caption} {change.flow_unscored:,} have no score on one side or both{high}."


def _changes(found: Comparison, judge: str) -> list[dict[str, Any]]:
    """Rows of a judge's table of changes, grouped by the model compared, in the order of the runs."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for change, finding in zip(found.comparisons, headline.findings(found, {}), strict=True):
        if change.scorer == judge and change.split in CHANGE_SPLITS:
            maxima = [change.of("expected_max_toxicity"), change.of("toxicity_probability")]
            row = {"change": change, "verdict": finding.verdict, "of": [change.of("mean"), *maxima]}
            groups.setdefault((change.from_, change.to), []).append(row)
    return [{"from": pair[0], "to": pair[1], "rows": rows} for pair, rows in groups.items()]


def _quality(models: Sequence[ModelSummary]) -> list[dict[str, Any]]:
    rows = []
    for key, name, hint, form in _QUALITY:
        cells = []
        for model in models:
            quality = model.quality
            value = getattr(quality, key)
            if form == "share":
                cells.append(notes.counter_share(quality))
            elif form in ("percent", "corrected"):
                cells.append(formats.percent(value))
            elif form == "number":
                cells.append(formats.number(value, ",.1f"))
            else:
                cells.append(formats.number(value))
            null, corrected_ci95 = quality.prompt_similarity_null, quality.counter_narrative_corrected_ci95
            if form == "similarity" and value is not None and null is not None:
                cells[-1] += f" ({formats.number(null)})"
            if form == "corrected" and corrected_ci95 is not None:
                cells[-1] += f" [{formats.interval_of_shares(corrected_ci95)}]"
        rows.append({"key": key, "name": name, "hint": hint, "cells": cells})
    return rows


def _utility(models: Sequence[ModelSummary]) -> list[dict[str, Any]]:
    """Rows for what a model was asked besides its prompts, with intervals over items."""
    rows = []
    for task, (name, hint) in _UTILITY.items():
        found = [model.utility.get(task) for model in models]
        if any(found):
            cells = [utility.value_text(task, one) for one in found]
            rows.append({"key": UTILITY_FIELDS[task], "name": name, "hint": hint, "cells": cells})
    if any(model.over_refusal for model in models):
        name, hint = "Harmless prompts refused", "they only sound dangerous; lower is better"
        cells = [utility.refusal_text(model) for model in models]
        rows.append({"key": "over_refusal_fraction", "name": name, "hint": hint, "cells": cells})
        words = [None if model.over_refusal is None else model.over_refusal.mean_words for model in models]
        name, cells = "Words an answer to these", [formats.number(one, ",.1f") for one in words]
        rows.append({"key": "over_refusal_words", "name": name, "hint": "", "cells": cells})
    return rows


def _kept(models: Sequence[ModelSummary]) -> list[dict[str, Any]]:
    """What each model can still do, against the baseline."""
    return [{"label": model.label, "rows": rows} for model in models if (rows := utility.changes(model))]


def _groups(examples: Sequence[Example]) -> list[dict[str, Any]]:
    """Examples by kind. Each prompt and answer comes with whether it is hidden: if any judge scored it medium or high,
    or none scored it.
    """
    return [
        {
            "kind": kind,
            "heading": heading,
            "how": how,
            "examples": [
                (
                    example,
                    _may_offend([example.toxicity]),
                    [(answer, _may_offend(answer.scores.values())) for answer in example.answers],
                )
                for example in examples
                if example.kind == kind
            ],
        }
        for kind, (heading, how) in _KINDS.items()
        if any(example.kind == kind for example in examples)
    ]


def _may_offend(values: Iterable[float | None]) -> bool:
    known = [value for value in values if value is not None]
    return not known or max(known) >= LOW_BELOW


def _about(about: Mapping[str, Any], found: Comparison) -> dict[str, Any]:
    """``about`` with every key that the templates read, and settings laid out as a table."""
    models = [
        {
            "label": model["label"],
            "kind": model.get("kind") or "unknown",
            "model": model.get("model"),
            "adapter": model.get("adapter"),
            "rewards": model.get("rewards"),
            "date": (model.get("environment", {}).get("date") or "")[:16].replace("T", " "),
        }
        for model in about.get("models", [])
    ]
    prompts = about.get("prompts", {})
    first = next(iter(found.baseline.scorers.values()), None)
    return {
        "models": models,
        "settings": side_by_side([model.get("settings", {}) for model in about.get("models", [])]),
        "environment": side_by_side([model.get("environment", {}) for model in about.get("models", [])]),
        "prompts": {key: prompts.get(key) for key in ("source", "number", "toxic", "toxic_by", "hash")},
        "toxic_answers": None if first is None else first["toxic_prompts"].n,
        "judges": about.get("judges", []),
        "examples_by": about.get("examples_by"),
        "threshold": found.settings.threshold,
        "strict": not found.settings.inclusive,
        "rule": notes.rule_text(found.settings),
        "thresholds": notes.threshold_notes(found.settings),
        "notes": about.get("notes", []),
        "limits": about.get("limits", []),
    }


def _bucket(value: float | None) -> str:
    return "unscored" if value is None else bucket_name(value)
