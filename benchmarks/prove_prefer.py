"""What pairs teach besides harmlessness: the same judged answers, learnt in several ways. ``make prove-prefer``.

    python benchmarks/prove_prefer.py            goes on where it was stopped
    python benchmarks/prove_prefer.py --page     only writes the table of finished runs into docs/results.md

SmolLM2 answers the toxic prompts of RealToxicityPrompts' training half ($REWARDLM_DATA) eight times, and ``starter``
judges. All trainings learn from these answers. Each model then answers 240 toxic prompts of the other half;
``witness`` and ``lexical2``, which took no part in training, say how toxic that is. Over an hour of one core.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from page import write_between

import rewardlm as rl
from rewardlm.config import PreferSettings, data_folder
from rewardlm.data.prompts import load_prompts
from rewardlm.formats import interval_of_shares, number, percent
from rewardlm.types import Prompt

OUT = Path("runs/prove-prefer")
MODEL, TEACHER, JUDGES = "smollm2-135m", "starter", ["witness", "lexical2", "starter"]
SAMPLING = {"top_p": 0.9}
LIMIT = 240  # prompts that are measured, drawn with the seed 0
# Before trainings retained plain text.
FREE = {"retain": {"coef": 0.0}}
# Pairs whose answers differ in toxicity and are alike in similarity.
ALIKE = {
    "rewards": {"transform": "probability", "terms": {"similarity": 0.001, "refusal": 0.5, "counter_narrative": 0.2}},
    "pairs": {"margin": 0.3, "topic": 0.25, "topic_gap": 0.1, "per_prompt": 2},
}
FAST_AND_TOPICAL = {
    "learning_rate": 8e-4,
    "rewards": {"terms": {"similarity": 1.5, "refusal": 0.5, "counter_narrative": 0.5}},
}
# By folder: its name in the tables, and its settings. The first one draws the answers; one that comes ``after`` another
# goes on from its adapter and draws its own.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "as-rl": (
        "A: paid as RL was then",
        {
            "steps": 32, "epochs": 1.5, "learning_rate": 4e-4, "beta": 0.1, "sft_weight": 0.0,
            "rewards": {"transform": "logit", "terms": {"similarity": 10, "refusal": 2, "counter_narrative": 2}},
            "pairs": {"margin": 2, "topic": 0.5, "topic_gap": None, "per_prompt": 1},
        },
    ),
    "alike": (
        "B: pairs alike in similarity",
        {"steps": 30, "epochs": 1.5, "learning_rate": 4e-4, "beta": 0.1, "sft_weight": 0.2, **ALIKE},
    ),
    "alike-weak": (
        "C: as B, held less",
        {"steps": 40, "epochs": 2, "learning_rate": 4e-4, "beta": 0.03, "sft_weight": 0.1, **ALIKE},
    ),
    "alike-fast": (
        "D: as B, faster",
        {"steps": 40, "epochs": 2, "learning_rate": 8e-4, "beta": 0.1, "sft_weight": 0.1, **ALIKE},
    ),
    "leaning-fast": (
        "E: similarity paid a little",
        {
            "steps": 40, "epochs": 1.6, "learning_rate": 8e-4, "beta": 0.1, "sft_weight": 0.1,
            "rewards": {"terms": {"similarity": 0.5, "refusal": 0.5, "counter_narrative": 0.2}},
            "pairs": {"margin": 0.3, "topic": 0.5, "topic_gap": 0.25, "per_prompt": 2},
        },
    ),
    "leaning": (
        "F: similarity paid more",
        {
            "epochs": 1.6, "learning_rate": 6e-4,
            "rewards": {"terms": {"similarity": 1.0, "refusal": 0.5, "counter_narrative": 0.5}},
        },
    ),
    "topical": ("G: similarity paid most", {"epochs": 1.6, **FAST_AND_TOPICAL}),
    "toxic-only": (
        "H: as G, no pair of two harmless answers",
        {"epochs": 1.6, **FAST_AND_TOPICAL, "pairs": {"toxicity_gap": 0.1}},
    ),
    "again": (
        "I: F, and its own answers once more",
        {
            "steps": 30, "epochs": 1.6, "learning_rate": 6e-4, "after": "leaning",
            "rewards": {"terms": {"similarity": 0.3, "refusal": 0.5, "counter_narrative": 0.1}},
            "pairs": {"margin": 0.2},
        },
    ),
    "best": (
        "J: the best answers alone",
        {"method": "raft", "steps": 30, "epochs": 1.5, "learning_rate": 4e-4, **ALIKE},
    ),
    "retained": (
        "K: as G, plain text retained",
        {"epochs": 1.6, **FAST_AND_TOPICAL, "retain": {"coef": 5, "batch": 8}},
    ),
    "retained-fast": (
        "L: as K, three times the rate",
        {"epochs": 1.6, **FAST_AND_TOPICAL, "learning_rate": 2.5e-3, "retain": {"coef": 5, "batch": 16}},
    ),
    "retained-toxic": (
        "M: as L, similarity paid half",
        {
            "epochs": 1.6, "learning_rate": 2.5e-3, "retain": {"coef": 5, "batch": 16},
            "rewards": {"terms": {"similarity": 0.75, "refusal": 0.5, "counter_narrative": 0.5}},
        },
    ),
    "default": ("**N: the defaults**", {"epochs": 1.6, "retain": {}}),
}  # fmt: skip


def main() -> None:
    """Train, measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true", help="run nothing")
    if not parser.parse_args().page:
        run_all()
    text = "\n".join([*table(), "", *settings_table()]) + "\n"
    print(text)
    write_between("prove-prefer", text)


def run_all() -> None:
    """All trainings and measurements that aren't there yet."""
    learn, measured = prompts("train"), prompts("measure")
    how: dict[str, Any] = {
        "prompts": str(measured), "judges": JUDGES, "part": "measure", "limit": LIMIT, "samples": 1,
        "max_new_tokens": 48, "generation": SAMPLING,
    }  # fmt: skip
    rl.measure(MODEL, out=OUT / "measure/PT", label="PT", **how)
    first: Path | None = None
    for name, (_, settings) in VARIANTS.items():
        out, after = OUT / name, settings.get("after")
        started = {"answers": first} if after is None else {"adapter": OUT / after}
        own = own_settings(settings)
        rl.prefer(
            MODEL, prompts=str(learn), part="train", reward=TEACHER, samples=8, max_new_tokens=48,
            generation=SAMPLING, witness="none", out=out, **started, **own,
        )  # fmt: skip
        first = first or out
        rl.measure(MODEL, adapter=out, out=OUT / "measure" / name, label=name, **how)
        measure_plain(name, out)
    measure_plain("PT", None)


def own_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """A variant's settings of ``prefer``. One that says nothing of plain text retains none."""
    return {**FREE, **{key: value for key, value in settings.items() if key != "after"}}


def measure_plain(name: str, adapter: Path | None) -> None:
    """How likely a model finds plain text: the beginnings of WikiText's articles."""
    rl.measure(
        MODEL, adapter=adapter, prompts=str(prompts("measure")), limit=2, max_new_tokens=8, judges=["lexical2"],
        similarity=False, perplexity=False, counter_narrative=None, suite="utility",
        utility={"tasks": ["wikitext"], "words": 100}, out=OUT / "plain" / name, label=name,
    )  # fmt: skip


def measured_prompts() -> list[Prompt]:
    """The prompts that all models answer."""
    return load_prompts(str(prompts("measure")), part="measure", limit=LIMIT, seed=0).prompts


def prompts(part: str) -> Path:
    """The toxic prompts of one half."""
    path = OUT / f"toxic-{part}.jsonl"
    if path.exists():
        return path
    toxic = [prompt for prompt in known_prompts(part) if is_toxic(prompt)]
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"id": prompt.id, "prompt": prompt.text, "toxicity": prompt.toxicity} for prompt in toxic]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def known_prompts(part: str) -> list[Prompt]:
    """All of RealToxicityPrompts that $REWARDLM_DATA has, of one half."""
    folder = data_folder()
    source = None if folder is None else folder / "realtoxicityprompts/prompts.jsonl"
    if source is None or not source.exists():
        sys.exit("$REWARDLM_DATA/realtoxicityprompts/prompts.jsonl: not there; this experiment needs it")
    return load_prompts(str(source), part=part).prompts


def is_toxic(prompt: Prompt) -> bool:
    """Whether the data set's own judge, Perspective, calls it so."""
    return (prompt.toxicity or 0) > 0.5


def table() -> Iterator[str]:
    """A row a model: the toxic shares of its answers, and what they cost."""
    yield (
        "| what is learnt | toxic by `witness` (95 %) | by `lexical2` | by `starter`, the reward | perplexity | "
        "similarity | opposes hate | ended | WikiText |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    names = [name for name in ("PT", *VARIANTS) if (OUT / "measure" / name / "run.json").exists()]
    for name in names:
        cells = [
            "nothing: PT" if name == "PT" else VARIANTS[name][0],
            *figures(OUT / "measure" / name),
            plain_change(name),
        ]
        yield f"| {' | '.join(cells)} |"


def figures(run: Path) -> list[str]:
    """Of one model's answers: the toxic share by each judge, perplexity, similarity, how many oppose hate, and end."""
    model = rl.compare([run]).models[0]
    shares = {judge: model.scorers[judge]["toxic_prompts"] for judge in JUDGES}
    mine, quality = shares["witness"], model.quality
    opposes, cut = quality.counter_narrative_fraction, quality.truncated_fraction
    return [
        f"{percent(mine.toxic_fraction)} ({interval_of_shares(mine.toxic_fraction_ci95)})",
        percent(shares["lexical2"].toxic_fraction),
        percent(shares["starter"].toxic_fraction),
        number(quality.perplexity, ".1f"),
        number(quality.prompt_similarity, ".2f"),
        "" if opposes is None else percent(opposes),
        "" if cut is None else percent(1 - cut),
    ]


def plain_change(name: str) -> str:
    """By how much WikiText's perplexity rose; empty where it was not measured."""
    runs = [OUT / "plain" / one for one in ("PT", name)]
    if name == "PT" or not all((run / "run.json").exists() for run in runs):
        return ""
    before, after = (rl.compare([run]).models[0].quality.wikitext_perplexity for run in runs)
    assert before is not None
    assert after is not None
    return f"{100 * (after / before - 1):+.1f} %".replace("-", "−")


def settings_table() -> Iterator[str]:
    """A row a training: in what its settings differ from the others'."""
    yield (
        "| | method | steps | passes | learning rate | beta | SFT weight | paid for similarity | for opposing hate | "
        "similarity may differ by | least gap of toxicity | plain text weighs |"
    )
    yield f"|{'---|' * 12}"
    for name, own in VARIANTS.values():
        settings = PreferSettings(model=MODEL, **own_settings(own)).resolved()
        terms, pairs = settings.reward_settings.terms, settings.pairs
        cells = [
            name.strip("*")[0],
            settings.method,
            settings.steps,
            f"{settings.epochs:g}",
            f"{settings.learning_rate:.1e}".replace(".0e", "e").replace("e-0", "e-"),
            settings.beta if settings.method == "dpo" else "",
            settings.sft_weight if settings.method == "dpo" else "",
            f"{terms.similarity:g}" + (" (of a logit)" if settings.reward_settings.transform == "logit" else ""),
            f"{terms.counter_narrative:g}",
            "" if settings.method == "raft" else "anything" if pairs.topic_gap is None else pairs.topic_gap,
            "" if settings.method == "raft" else "none" if pairs.toxicity_gap is None else pairs.toxicity_gap,
            f"{settings.retain_coef:g}" + (f" ({settings.retain.batch} pieces)" if settings.retain_coef else ""),
        ]
        yield f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
