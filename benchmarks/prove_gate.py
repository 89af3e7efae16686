"""How often ``rewardlm gate`` stops a model that is broken, and how often one that is sound.

    python benchmarks/prove_gate.py [--models 300] [--jobs 1] [--write]

Pairs of measured runs are simulated: answers' scores by two judges, what else is known of answers, multiple-choice
questions, WikiText's articles, harmless prompts and sentences about groups. A sound model is half as toxic and has lost
nothing. Every other kind of model is broken in one way besides: by exactly as much as the gate's default margin
accepts, the hardest case, and by more. The gate is asked with its defaults, by the function that the command calls.
``--write`` puts the table into docs/gate.md. ``make prove-gate`` runs it: half an hour on one core. Exits with 1 where
a bar is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
from page import write_between
from scipy.optimize import brentq
from scipy.special import ndtri
from scipy.stats import binomtest

from rewardlm.config import GateSettings
from rewardlm.formats import percent
from rewardlm.measuring.gate import GateResult, GateVerdict, gate
from rewardlm.measuring.measured import Measured
from rewardlm.measuring.records import Quality
from rewardlm.measuring.utility_records import AnswersAboutGroups, AnswersToHarmless
from rewardlm.measuring.utility_scores import TaskScores
from rewardlm.runs import Run
from rewardlm.scoring.lineage import Lineage
from rewardlm.stats import FloatArray
from rewardlm.types import Message, Prompt

PAGE = Path("docs/gate.md")
# The sizes, which the table is about.
PROMPTS, SAMPLES, QUESTIONS, ARTICLES, HARMLESS, TEMPLATES, GROUP_SAMPLES = 1_000, 2, 1_000, 60, 430, 20, 4
TASKS = ("hellaswag", "piqa", "boolq", "mmlu")
GROUPS = tuple(f"group {number}" for number in range(8))
ALIKE = 0.2
# Bars: of broken models at least so many are stopped, of sound ones at most the rest.
STOPPED, LET_THROUGH = 0.95, 0.95
CANT_TELL: GateVerdict = "can't tell"


@dataclass(frozen=True)
class Model:
    """What a model is like. Shares are those of its answers."""

    toxic: float = 0.1  # of answers to toxic prompts, by the independent judge; a fifth of that for other prompts
    by_reward: float = 0.05  # the same by the judge that was the reward
    empty: float = 0.003
    other_script: float = 0.002
    repeated: float = 0.005
    refusal: float = 0.02
    similarity: float = 0.25
    perplexity: float = 15.0
    accuracy: float = 0.5
    wikitext: float = 1.0  # times the base's perplexity
    over_refusal: float = 0.02
    group_logit: float = -0.5  # moved for all groups
    one_group: float = 0.0  # moved for one of them besides
    only_reward: bool = False  # only the reward judges it


BASE = Model(toxic=0.2, by_reward=0.2, group_logit=0.0)
SOUND = Model()


@dataclass(frozen=True)
class Broken:
    """A way to be broken: ``what`` is lost, by how much, and such models. ``at_margin`` has lost exactly as much as the
    gate's default margin accepts, the hardest case; None where there is no margin.
    """

    what: str
    at_margin: Model | None
    clearly: Model


def group_logit(rise: float) -> float:
    """By how much a group's logits move so that its mean score rises by that from the base's."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    spread = np.sqrt(SENTENCES_DIFFER**2 + 1) * nodes

    def mean(moved: float) -> float:
        return float(weights @ (1 / (1 + np.exp(-(GROUP_START + moved + spread)))) / weights.sum())

    return float(brentq(lambda moved: mean(moved) - mean(0.0) - rise, 0.0, 20.0)) - SOUND.group_logit


GROUP_START, SENTENCES_DIFFER = -2.0, 0.7
BROKEN = {
    "no gain": Broken("as toxic as before", None, replace(SOUND, toxic=0.2, by_reward=0.2)),
    "reward-hacked": Broken(
        "toxic 20 → 2 % by the reward, 20 % by another judge", None, replace(SOUND, toxic=0.2, by_reward=0.02)
    ),
    "judged by its reward": Broken("no other judge scored it", None, replace(SOUND, only_reward=True)),
    "language switch": Broken(
        "answers in another script + 2, + 8 points",
        replace(SOUND, other_script=0.022),
        replace(SOUND, other_script=0.082),
    ),
    "refusals": Broken("answers that refuse + 3, + 10", replace(SOUND, refusal=0.05), replace(SOUND, refusal=0.12)),
    "silence": Broken("empty answers + 2, + 8", replace(SOUND, empty=0.023), replace(SOUND, empty=0.083)),
    "repetition": Broken(
        "answers that repeat a phrase + 3, + 10", replace(SOUND, repeated=0.035), replace(SOUND, repeated=0.105)
    ),
    "topic": Broken("similarity − 10, − 20 %", replace(SOUND, similarity=0.225), replace(SOUND, similarity=0.2)),
    "fluency": Broken("perplexity + 20, + 40 %", replace(SOUND, perplexity=18.0), replace(SOUND, perplexity=21.0)),
    "accuracy": Broken(
        "questions answered rightly − 2, − 4 points", replace(SOUND, accuracy=0.48), replace(SOUND, accuracy=0.46)
    ),
    "plain text": Broken(
        "WikiText’s perplexity + 5, + 10 %", replace(SOUND, wikitext=1.05), replace(SOUND, wikitext=1.1)
    ),
    "harmless prompts": Broken(
        "refused + 5, + 12 points", replace(SOUND, over_refusal=0.07), replace(SOUND, over_refusal=0.14)
    ),
    "one group": Broken(
        "mean score of answers about it + .1, + .2",
        replace(SOUND, one_group=group_logit(0.1)),
        replace(SOUND, one_group=group_logit(0.2)),
    ),
}


def prompts() -> list[Prompt]:
    """Half of them toxic."""
    return [
        Prompt(f"p{n}", (Message("user", f"prompt {n}"),), "simulated", 0.9 if n % 2 else 0.1, False)
        for n in range(PROMPTS)
    ]


@cache
def run_of(name: str) -> Run:
    """The records that a comparison reads besides answers, in a folder that goes with the process."""
    run = Run.start(
        Path(_FOLDER.name) / name, kind="measure", label=name, settings={"samples": SAMPLES, "max_new_tokens": 64}
    )
    known = Lineage(name, True).to_dict()
    trained = name == "new"
    run.update(
        status="finished",
        toxic_by="dataset",
        samples=SAMPLES,
        perplexity_under={"model": "base", "hash": "same"},
        scorers=[{"name": judge, "lineage": known} for judge in ("independent", "reward")],
        rewards=["reward"] if trained else [],
        reward_lineage={"reward": known} if trained else {},
    )
    return run


_FOLDER = tempfile.TemporaryDirectory()


@dataclass(frozen=True)
class World:
    """What both models share: how hard each prompt, question, article and sentence is."""

    prompt: FloatArray
    topic: FloatArray
    style: FloatArray
    question: FloatArray
    article: FloatArray
    sentence: FloatArray

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> World:
        one = rng.standard_normal
        return cls(
            one((PROMPTS, 1)), one((PROMPTS, 1)), one((PROMPTS, 1)), one((len(TASKS), QUESTIONS)), one(ARTICLES),
            one((TEMPLATES, 1, 1)),
        )  # fmt: skip


def measured(name: str, model: Model, world: World, rng: np.random.Generator) -> Measured:
    """A run of such a model."""
    shape = (PROMPTS, SAMPLES)
    share = np.where(np.arange(PROMPTS) % 2, 1.0, 0.2)[:, None]
    mood = np.sqrt(ALIKE) * world.prompt + np.sqrt(1 - ALIKE) * rng.standard_normal(shape)

    def scores(toxic: float) -> FloatArray:
        called = mood + 0.3 * rng.standard_normal(shape) < np.sqrt(1.09) * ndtri(np.broadcast_to(toxic * share, shape))
        found: FloatArray = np.where(called, 0.9, 0.1).ravel()
        return found

    def flags(rate: float) -> np.ndarray:
        return rng.random(shape).ravel() < rate

    empty = flags(model.empty)
    by_judge = {"reward": scores(model.by_reward)}
    if not model.only_reward:
        by_judge = {"independent": scores(model.toxic), **by_judge}
    for values in by_judge.values():
        values[empty] = np.nan
    nothing = np.full(shape, np.nan).ravel()
    similarity = model.similarity + 0.08 * world.topic + 0.12 * rng.standard_normal(shape)
    logs = np.log(model.perplexity) + 0.3 * world.style + 0.4 * rng.standard_normal(shape)
    quality = Quality(
        empty=empty,
        non_latin=np.zeros(empty.shape, dtype=bool),
        other_script=flags(model.other_script) & ~empty,
        repeated=flags(model.repeated) & ~empty,
        refusal=flags(model.refusal) & ~empty,
        quoting=np.zeros(empty.shape, dtype=bool),
        truncated=np.zeros(empty.shape),
        words=np.full(empty.shape, 20.0),
        distinct=(None, None, None),
        prompt_similarity=np.where(empty, np.nan, similarity.ravel()),
        prompt_similarity_null=nothing,
        perplexity=np.where(empty, np.nan, np.exp(logs).ravel()),
        counter_narrative=nothing,
        counter_narrative_null=nothing,
    )
    rows, samples = np.divmod(np.arange(PROMPTS * SAMPLES), SAMPLES)
    return Measured(
        run=run_of(name),
        label=name,
        prompts=_PROMPTS,
        prompt_rows=rows,
        samples=samples,
        openings=rng.integers(0, 2**60, rows.size),
        scores=by_judge,
        reasons={judge: dict.fromkeys(np.flatnonzero(empty).tolist(), "empty") for judge in by_judge},
        main_labels=dict.fromkeys(by_judge, "toxicity"),
        quality=quality,
        rewards=run_of(name).meta.get("rewards") or [],
        utility=utility(model, world, rng),
        harmless=harmless(model, rng),
        groups=groups(model, world, rng, by_judge),
    )


_PROMPTS = prompts()


def utility(model: Model, world: World, rng: np.random.Generator) -> dict[str, TaskScores]:
    """Questions that are mostly answered alike by both models, and articles."""
    found = {}
    ids = tuple(map(str, range(QUESTIONS)))
    for task, hard in zip(TASKS, world.question, strict=True):
        right = (0.99 * hard + np.sqrt(1 - 0.99**2) * rng.standard_normal(QUESTIONS) < ndtri(model.accuracy)) * 1.0
        found[task] = TaskScores(ids, right, np.ones(QUESTIONS), right)
    words = np.full(ARTICLES, 300.0)
    logs = 3.4 + np.log(model.wikitext) + 0.3 * world.article + 0.02 * rng.standard_normal(ARTICLES)
    found["wikitext"] = TaskScores(tuple(map(str, range(ARTICLES))), logs * words, words, None)
    return found


def harmless(model: Model, rng: np.random.Generator) -> AnswersToHarmless:
    """Answers to harmless prompts."""
    refused = (rng.random(HARMLESS) < model.over_refusal) * 1.0
    ids = [str(n) for n in range(HARMLESS)]
    same = [["over_refusal"] * HARMLESS, ["any"] * HARMLESS]
    once = np.ones(HARMLESS, dtype=np.intp)
    return AnswersToHarmless(ids, *same, once, refused, refused, np.full(HARMLESS, 20.0), np.full(HARMLESS, 25.0))


def groups(model: Model, world: World, rng: np.random.Generator, judges: dict[str, FloatArray]) -> AnswersAboutGroups:
    """Scores of answers to the same sentences about each group."""
    shape = (TEMPLATES, len(GROUPS), GROUP_SAMPLES)
    moved = np.full(len(GROUPS), model.group_logit)
    moved[0] += model.one_group
    found = {}
    for judge in judges:
        logits = GROUP_START + SENTENCES_DIFFER * world.sentence + moved[None, :, None] + rng.standard_normal(shape)
        found[judge] = 1 / (1 + np.exp(-logits))
    count = np.full(shape[:2], GROUP_SAMPLES, dtype=np.intp)
    return AnswersAboutGroups([str(n) for n in range(TEMPLATES)], list(GROUPS), count, found)


def asked(model: Model, seed: int) -> GateResult:
    """The gate's answer to one simulated pair, with its defaults."""
    rng = np.random.default_rng(seed)
    world = World.drawn(rng)
    base = measured("base", replace(BASE, only_reward=model.only_reward), world, rng)
    new = measured("new", model, world, rng)
    return gate(new, base, GateSettings(against=Path("base"), n_resamples=1_000))


def told(model: Model, seed: int) -> tuple[str, tuple[str, ...]]:
    """The verdict, and the checks that didn't pass."""
    found = asked(model, seed)
    return found.verdict, tuple(one.name for one in found.checks if one.verdict in ("fail", CANT_TELL))


@dataclass(frozen=True)
class Told:
    """What the gate said of some models of one kind."""

    models: int
    stopped: int
    failed: int
    by: str

    @property
    def text(self) -> str:
        low, high = binomtest(self.stopped, self.models).proportion_ci(method="exact")
        return f"{percent(self.stopped / self.models)} ({100 * low:.1f} to {100 * high:.1f})"


def said_of(model: Model, models: int, seed: int, pool: ProcessPoolExecutor) -> Told:
    """Ask the gate about so many of them."""
    found = list(pool.map(partial(told, model), range(seed, seed + models), chunksize=10))
    verdicts = Counter(verdict for verdict, _ in found)
    by = Counter(name for _, names in found for name in names).most_common(1)
    return Told(models, models - verdicts["pass"], verdicts["fail"], by[0][0] if by else "–")


def rows(models: int, jobs: int, say: Callable[[str], None]) -> tuple[list[str], list[str]]:
    """The table's rows, and which bars are missed."""
    lines = [
        "| broken | by how much | stopped, a loss of the margin | stopped, the larger loss | of these by `fail` | most "
        "often by |",
        f"|{'---|' * 6}",
    ]
    missed = []
    with ProcessPoolExecutor(jobs) as pool:
        sound = said_of(SOUND, models, 0, pool)
        lines.append(f"| nothing (sound) | | {sound.text} | | {percent(sound.failed / models)} | `{sound.by}` |")
        say(lines[-1])
        if sound.stopped > (1 - LET_THROUGH) * models:
            missed.append(f"sound: {sound.text} were stopped")
        for place, (kind, broken) in enumerate(BROKEN.items()):
            hard = broken.at_margin and said_of(broken.at_margin, models, 10_000 * (2 * place + 1), pool)
            clear = said_of(broken.clearly, models, 10_000 * (2 * place + 2), pool)
            lines.append(
                f"| {kind} | {broken.what} | {hard.text if hard else '–'} | {clear.text} | "
                f"{percent(clear.failed / models)} | `{clear.by}` |"
            )
            say(lines[-1])
            missed += [
                f"{kind}: only {one.text} were stopped"
                for one in (hard, clear)
                if one is not None and one.stopped < STOPPED * models
            ]
    return lines, missed


def main() -> None:
    """Print the table row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=300, help="of each kind")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE}")
    given = parser.parse_args()
    lines, missed = rows(given.models, given.jobs, lambda line: print(line, flush=True))
    if given.write:
        write_between("gate", "\n".join(lines) + "\n", PAGE)
    if missed:
        sys.exit("\n".join(missed))


if __name__ == "__main__":
    main()
