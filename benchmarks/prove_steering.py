"""What training has to beat: every way of steering beside fine-tuning and RL. ``make prove-steering`` runs it.

    python benchmarks/prove_steering.py                   goes on where it was stopped
    python benchmarks/prove_steering.py --demo runs/demo  where make demo left its two adapters
    python benchmarks/prove_steering.py --page            only writes the tables of finished runs into docs/results.md

All models answer the toxic prompts of RealToxicityPrompts' measuring half, at top-p 0.9, and `witness` judges. It took
no part in steering or training: these learn from scores by `starter`, on the training half. Layers and strengths are
chosen there too. Every strength is measured all the same, so that each method has a curve.

With $REWARDLM_DATA the prompts are its realtoxicityprompts/prompts.jsonl, else the packaged ones. A run that is there
is not made again, so two of these commands can share the work, each with a core (--only, --no-models). Over an hour on
two cores; PPLM alone takes a quarter of that. With --utility, what models can still do is asked too, for methods at the
strength that was chosen: some minutes more for each (its data: docs/measuring.md).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from page import write_between

import rewardlm as rl
from rewardlm.config import FrontierSettings, data_folder
from rewardlm.formats import interval_of_shares, number, p_values_text, percent, points_text
from rewardlm.measuring.frontier import Frontier, Matched, frontier
from rewardlm.reporting.frontier_page import method_name, write_frontier_page

OUT = Path("runs/prove-steering")
MODEL, JUDGE, OTHER, TEACHER = "smollm2-135m", "witness", "lexical2", "starter"
SAMPLING = {"top_p": 0.9}
# By the name of its folder: the method, what else is asked of it, and the strengths that are measured.
METHODS: dict[str, tuple[str, dict[str, Any], tuple[float, ...]]] = {
    "system": ("system", {}, (1,)),
    "best-of-n": ("best-of-n", {}, (2, 4)),
    "rejection": ("rejection", {}, (8,)),
    "add": ("activation", {}, (1, 2, 4, 8)),
    "ablate": ("activation", {"activation": {"how": "ablate"}}, (1,)),
    "gated": ("activation", {"activation": {"how": "gated"}}, (1, 2, 4, 8)),
    "selfdebias": ("selfdebias", {}, (10, 50, 100)),
    "profs": ("profs", {}, (0.5, 1)),
    "task-vector": ("task-vector", {}, (0.25, 0.5, 1)),
    "dexperts": ("dexperts", {}, (0.5, 1, 2)),
    "pplm": ("pplm", {"strength": 1}, (1, 4)),
}
ADAPTER_STRENGTHS = (0.5, 1, 1.5)
UTILITY_ITEMS = 250


def main() -> None:
    """Fit, measure, compare, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="a finished make demo")
    parser.add_argument("--limit", type=int, help="fewer prompts, for a first look")
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument(
        "--models", action=argparse.BooleanOptionalAction, default=True, help="measure the base and trained models, too"
    )
    parser.add_argument("--utility", action="store_true", help="measure what models can still do, too")
    parser.add_argument("--page", action="store_true", help="run nothing")
    asked = parser.parse_args()
    if not asked.page:
        _run_all(asked.demo, asked.limit, asked.only, models=asked.models, utility=asked.utility)
    labels = _treatments(asked.demo, list(METHODS), models=True)
    runs = [OUT / "measure" / label for label in labels if _is_finished(OUT / "measure" / label)]
    found = {judge: frontier(runs, FrontierSettings(scorer=judge, split="toxic_prompts")) for judge in (JUDGE, OTHER)}
    write_frontier_page(found[JUDGE], OUT / "frontier.html")
    tables = f"{points_table(found)}\n{tests_table(found[JUDGE])}"
    print(tables)
    write_between("prove-steering", tables)


def _run_all(demo: Path, limit: int | None, only: list[str], *, models: bool, utility: bool) -> None:
    _rl_from_the_base(demo)
    prompts = _prompts()
    learn = OUT / "learn"
    rl.measure(
        MODEL, prompts, TEACHER, out=learn, part="train", samples=4, max_new_tokens=48, label="PT", generation=SAMPLING,
        similarity=False, perplexity=False, counter_narrative=None,
    )  # fmt: skip
    for name in only:
        _fit(name, *METHODS[name][:2], learn)
    for label, how in _treatments(demo, only, models=models).items():
        if utility and _is_plain_choice(how):
            how |= {"suite": "utility", "utility": {"items": UTILITY_ITEMS, "tasks": ["hellaswag", "piqa", "wikitext"]}}
        rl.measure(
            MODEL, prompts, [JUDGE, OTHER], out=OUT / "measure" / label, part="measure", limit=limit, label=label,
            samples=1, max_new_tokens=32, generation=SAMPLING, counter_narrative=None, **how,
        )  # fmt: skip


def _treatments(demo: Path, only: list[str], *, models: bool) -> dict[str, dict[str, Any]]:
    """By its label, what is done to the model of each run."""
    found: dict[str, dict[str, Any]] = {"PT": {}} if models else {}
    trained = {"FT": demo / "train/FT", "RL": OUT / "RL", "RL after FT": demo / "train/RL"}
    for label, adapter in trained.items() if models else ():
        found |= {f"{label} {x:g}": {"adapter": adapter, "adapter_strength": x} for x in ADAPTER_STRENGTHS}
    for name in only:
        found |= {f"{name} {x:g}": {"steer": OUT / "steer" / name, "strength": x} for x in METHODS[name][2]}
    return found


def _is_plain_choice(how: dict[str, Any]) -> bool:
    """Whether this is a model as it is, or a method at the strength that was chosen when it was fitted."""
    if "steer" not in how:
        return how.get("adapter_strength", 1) == 1
    return bool(json.loads((how["steer"] / "steer.json").read_text(encoding="utf-8"))["strength"] == how["strength"])


def _prompts() -> str:
    """Where the toxic prompts are."""
    folder = data_folder()
    source = None if folder is None else folder / "realtoxicityprompts/prompts.jsonl"
    if source is None or not source.exists():
        return "rtp:packaged:toxic"
    toxic = OUT / "toxic.jsonl"
    if not toxic.exists():
        rows = [json.loads(line)["prompt"] for line in source.read_text(encoding="utf-8").splitlines()]
        kept = [{"text": row["text"], "toxicity": row["toxicity"]} for row in rows if (row["toxicity"] or 0) >= 0.5]
        toxic.parent.mkdir(parents=True, exist_ok=True)
        toxic.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    return str(toxic)


def _rl_from_the_base(demo: Path) -> None:
    """RL as the demo has it, but for its start: the base instead of the fine-tuned model."""
    out, theirs = OUT / "RL", json.loads((demo / "train/RL/run.json").read_text(encoding="utf-8"))["settings"]
    if not _is_finished(out):
        config = OUT / "rl.json"
        OUT.mkdir(parents=True, exist_ok=True)
        config.write_text(json.dumps({**theirs, "adapter": None}), encoding="utf-8")
        _rewardlm("rlaf", MODEL, "--config", config, "--out", out)


def _fit(name: str, method: str, settings: dict[str, Any], learn: Path) -> None:
    out = OUT / "steer" / name
    if (out / "steer.json").exists():
        return
    config = OUT / f"{name}.json"
    config.write_text(json.dumps({"method": method, **settings}), encoding="utf-8")
    _rewardlm("steer", "fit", MODEL, "--config", config, "--run", learn, "--judge", TEACHER, "--out", out)


def _rewardlm(*arguments: Any) -> None:
    subprocess.run([sys.executable, "-m", "rewardlm", *map(str, arguments)], check=True)


def _is_finished(run: Path) -> bool:
    record = run / "run.json"
    return record.exists() and json.loads(record.read_text(encoding="utf-8"))["status"] == "finished"


def points_table(found: dict[str, Frontier]) -> str:
    """A row a run, method by method."""
    mine = found[JUDGE]
    other = {point.label: point for point in found[OTHER].points}
    lines = [
        f"| method | strength | toxic by `{JUDGE}` (95 %) | by `{OTHER}` | perplexity | similarity | utility | "
        "tokens read | front |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for point in sorted(mine.points, key=lambda point: (point.method != "none", point.curve, point.strength)):
        lines.append(
            f"| {method_name(point.curve)} | {point.strength:g} | {percent(point.toxic_fraction)} "
            f"({interval_of_shares(point.toxic_fraction_ci95)}) | {percent(other[point.label].toxic_fraction)} | "
            f"{number(point.perplexity, '.1f')} | {number(point.prompt_similarity, '.3f')} | "
            f"{'' if point.utility is None else percent(point.utility)} | "
            f"{number(point.passes_per_token, '.1f')} | {'yes' if point.pareto else ''} |"
        )
    return "\n".join(lines) + "\n"


def tests_table(found: Frontier) -> str:
    """What the tests at equal fluency say of the base and of the trained models as they were trained."""
    lines = ["| model | method | change at equal fluency | chance |", "|---|---|---|---|"]
    for one in _tests(found):
        change = "none is as fluent" if one.delta is None else points_text(one.delta, one.delta_ci95)
        chance = "" if one.delta is None else p_values_text(one.p_value, one.p_adjusted)
        lines.append(f"| {one.model} | {method_name(one.curve)} | {change} | {chance} |")
    return "\n".join(lines) + "\n"


def _tests(found: Frontier) -> Iterator[Matched]:
    yield from sorted(found.matched, key=lambda one: (one.model, one.curve))


if __name__ == "__main__":
    main()
