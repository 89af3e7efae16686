"""Every reader of files that others may have written, each with valid files to begin with: ``READERS``. ``fuzz.py``
changes these files at random and reads them again.

The files are made by RewardLM's own commands on the model ``tiny``, or hold small texts of ours.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import yaml

Step = Callable[[Path], object]


@dataclass(frozen=True)
class Reader:
    """``make`` writes valid files into a folder, given another one with runs that are made once (``runs``). ``changed``
    are patterns of the files that are changed, one at a time. Each of ``steps`` reads the folder and uses what it
    reads, as a command would.
    """

    name: str
    make: Callable[[Path, Path], None]
    changed: tuple[str, ...]
    steps: tuple[Step, ...]
    # Needs runs of models, so it isn't part of the short fuzz.
    heavy: bool = False
    # Some of its steps are for some of its files alone, and refuse the others.
    only_some: bool = False


TEXTS = (
    "How do I bake bread?",
    "You are all the same.",
    "Tell me about Ünïcode, “quoted” and, commas.",
    "Why?\nAnd how?",
)


# ------------------------------------------------------------------------------------------------ tables and JSON lines


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """With a header; None is an empty cell. A .tsv has tabs."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n", delimiter="\t" if path.suffix == ".tsv" else ",")
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(text.getvalue(), "utf-8")


def write_all(folder: Path, name: str, rows: Sequence[Mapping[str, Any]], suffixes: Sequence[str]) -> None:
    """The same rows in several formats."""
    for suffix in suffixes:
        path = folder / f"{name}{suffix}"
        if suffix == ".jsonl":
            write_jsonl(path, rows)
        elif suffix == ".json":
            path.write_text(json.dumps(list(rows)), "utf-8")
        elif suffix == ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows]), path)
        else:
            write_csv(path, rows)


def _prompts(folder: Path, _: Path) -> None:
    rows = [{"id": f"p{n}", "prompt": text, "toxicity": n / 4} for n, text in enumerate(TEXTS)]
    write_all(folder, "flat", rows, (".jsonl", ".csv", ".tsv", ".parquet", ".json"))
    rtp = [
        {"filename": f"{n}.txt", "begin": 0, "end": 9, "challenging": n == 1,
            "prompt": {"text": text, "toxicity": n / 4}, "continuation": {"text": "so"}}
        for n, text in enumerate(TEXTS)
    ]  # fmt: skip
    write_all(folder, "nested", rtp, (".jsonl", ".parquet"))
    turns = [
        {
            "messages": [
                {"role": "user", "content": text},
                {"role": "assistant", "content": "Yes."},
                {"role": "user", "content": "So?"},
            ]
        }
        for text in TEXTS
    ]
    write_all(folder, "turns", turns, (".jsonl", ".parquet"))
    (folder / "lines.txt").write_text("\n".join(text.replace("\n", " ") for text in TEXTS) + "\n", "utf-8")


def _read_prompts(folder: Path) -> None:
    from rewardlm.data.prompts import load_prompts
    from rewardlm.runs import prompts_hash

    path = one(folder)
    for prompt in (found := load_prompts(str(path))).prompts:
        assert prompt.text.strip()
        assert prompt.toxicity is None or 0 <= prompt.toxicity <= 1
        as_utf8(prompt.id, prompt.text)
    prompts_hash(found.prompts)


def _dialogues(folder: Path, _: Path) -> None:
    rows = [
        {"id": f"d{n}", "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "I see."}],
            "target": "x"}
        for n, text in enumerate(TEXTS)
    ]  # fmt: skip
    write_all(folder, "messages", rows, (".jsonl", ".parquet", ".json"))
    pairs = [{"prompt": text, "response": "I see."} for text in TEXTS]
    write_all(folder, "pairs", pairs, (".csv", ".jsonl", ".parquet"))
    conan = [
        {
            "dialogue_id": n // 2,
            "turn_id": n % 2,
            "text": text,
            "type": ("HS", "CN")[n % 2],
            "TARGET": "MIGRANTS",
            "source": "x",
        }
        for n, text in enumerate(TEXTS)
    ]
    write_all(folder, "DIALOCONAN", conan, (".csv",))
    columns = {name: {str(n): row[name] for n, row in enumerate(conan)} for name in conan[0]}
    (folder / "DIALOCONAN.json").write_text(json.dumps(columns), "utf-8")
    counter = [
        {"HATE_SPEECH": text, "COUNTER_NARRATIVE": "No.", "TARGET": "WOMEN", "INDEX": n, "VERSION": "V1"}
        for n, text in enumerate(TEXTS)
    ]
    write_all(folder, "MTCONAN", counter, (".csv",))


def _read_dialogues(folder: Path) -> None:
    from rewardlm.data.dialogues import load_dialogues, pairs

    path = one(folder)
    for unanswered in (False, True):
        for dialogue in (found := load_dialogues(str(path), unanswered=unanswered)).dialogues:
            assert dialogue.turns
            as_utf8(dialogue.id, *(turn.text for turn in dialogue.turns))
        pairs(found.dialogues)


def _preferences(folder: Path, _: Path) -> None:
    plain = [{"prompt": text, "chosen": "Gladly.", "rejected": "Go away."} for text in TEXTS]
    write_all(folder, "pairs", plain, (".jsonl", ".csv", ".parquet", ".json"))
    chat = [
        {
            "prompt": [{"role": "user", "content": text}], "chosen": [{"role": "assistant", "content": "Gladly."}],
            "rejected": [{"role": "assistant", "content": "Go away."}],
        }
        for text in TEXTS
    ]  # fmt: skip
    write_all(folder, "chat", chat, (".jsonl", ".parquet"))
    single = [{"prompt": text, "completion": "Gladly.", "label": bool(n % 2)} for n, text in enumerate(TEXTS)]
    write_all(folder, "single", single, (".jsonl", ".csv", ".parquet"))


def _read_preferences(folder: Path) -> None:
    from rewardlm.data.preferences import load_preferences

    for found in load_preferences(one(folder), method="kto"):
        as_utf8(*(turn.text for turn in found.history), found.chosen or "", found.rejected or "")


def _judge_preferences(folder: Path) -> None:
    from rewardlm.judges.preferences import is_preference_file, load_preferences

    path = one(folder)
    if is_preference_file(str(path)):
        load_preferences(str(path))


def _labelled(folder: Path, _: Path) -> None:
    write_all(
        folder,
        "plain",
        [{"text": text, "toxicity": n / 4, "hate": n % 2} for n, text in enumerate(TEXTS)],
        (".csv", ".jsonl", ".json"),
    )
    write_all(
        folder,
        "suite",
        [{"text": text, "label": n % 2, "functionality": "f", "group": "women"} for n, text in enumerate(TEXTS)],
        (".csv", ".jsonl"),
    )
    check = [
        {
            "functionality": "f",
            "case_id": n,
            "test_case": text,
            "label_gold": ("hateful", "non-hateful")[n % 2],
            "target_ident": "women",
        }
        for n, text in enumerate(TEXTS)
    ]
    write_all(folder, "hatecheck", check, (".csv",))
    write_all(
        folder, "jigsaw", [{"rev_id": n, "comment": text, "toxic": n % 2} for n, text in enumerate(TEXTS)], (".csv",)
    )
    sbic = [
        {
            "post": text,
            "offensiveYN": n / 4,
            "intentYN": 0.5,
            "sexYN": 0.0,
            "whoTarget": 1,
            "targetMinority": '["women"]',
            "targetStereotype": '["are x"]',
        }
        for n, text in enumerate(TEXTS)
    ]
    write_all(folder, "sbic", sbic, (".csv",))
    write_all(
        folder,
        "davidson",
        [
            {"count": 3, "hate_speech": 0, "offensive_language": n % 2, "neither": 3, "class": 2, "tweet": text}
            for n, text in enumerate(TEXTS)
        ],
        (".csv",),
    )
    write_all(folder, "spans", [{"spans": "[0, 1]", "text": text} for text in TEXTS], (".csv",))
    rtp = [
        {
            "filename": "x",
            "challenging": False,
            "prompt": {"text": text, "toxicity": n / 4},
            "continuation": {"text": "so", "toxicity": 0.5},
        }
        for n, text in enumerate(TEXTS)
    ]
    write_all(folder, "rtp", rtp, (".jsonl",))


def _read_labelled(folder: Path) -> None:
    from rewardlm.judges.texts import load_labelled

    for found in load_labelled(str(one(folder))):
        for text in found.texts:
            as_utf8(text.text)


def _read_suite(folder: Path) -> None:
    from rewardlm.judges.suites import load_suite

    suite = load_suite(str(one(folder)))
    suite.sample(2, 0)
    for target in suite.labels:
        suite.targets(target)
    for text in suite.texts:
        as_utf8(text.text)


def _scored(folder: Path, _: Path) -> None:
    rows = [{"text": text, "score": n % 5 / 4, "label": n % 2} for n, text in enumerate(TEXTS * 6)]
    write_all(folder, "scored", rows, (".csv", ".tsv", ".jsonl", ".json", ".parquet"))


def _read_scored(folder: Path) -> None:
    from rewardlm.judges.migrate import read_scored
    from rewardlm.judges.settings import JudgeMigrateSettings

    read_scored(JudgeMigrateSettings(scored=str(one(folder)), to="lexical"))


def _utility(folder: Path, _: Path) -> None:
    tables = {
        "hellaswag": {"ind": 1, "activity_label": "Baking", "ctx_a": "A man bakes.", "ctx_b": "He",
            "endings": ["eats.", "sings.", "runs.", "sleeps."], "label": 1},
        "piqa": {"goal": "Open a jar", "sol1": "Twist it.", "sol2": "Sing.", "label": 0},
        "boolq": {"passage": "Bread is food.", "question": "is bread food", "answer": True},
        "mmlu": {"subject": "logic", "question": "What is it?", "choices": ["a", "b", "c", "d"], "answer": 2},
    }  # fmt: skip
    for name, row in tables.items():
        write_all(folder, name, [row, row, row], (".jsonl", ".parquet"))
    (folder / "wikitext.tokens").write_text(" \n = Bread = \n \n Bread is a food . \n It is old . \n", "utf-8")
    write_all(
        folder,
        "xstest",
        [{"id": n, "prompt": text, "type": "safe", "label": "safe", "focus": ""} for n, text in enumerate(TEXTS)],
        (".csv", ".parquet"),
    )


def _read_utility(folder: Path) -> None:
    from rewardlm.config import UtilitySettings
    from rewardlm.data.utility import load_utility
    from rewardlm.data.utility_prompts import load_asked

    path = one(folder)
    task = path.stem
    settings = UtilitySettings(**{"tasks": ["over_refusal" if task == "xstest" else task], task: path})
    for found in (load_asked if task == "xstest" else load_utility)(settings):
        assert found.n
        assert len(found.hash) == 64


def _configurations(folder: Path, _: Path) -> None:
    settings = {
        "measure": {"model": "tiny", "prompts": "starter", "scorer": ["lexical"], "samples": 2,
            "generation": {"temperature": 0.7}, "primary": {"scorer": "lexical"},
            "services": {"endpoints": {"mine": {"url": "http://127.0.0.1:1/v1", "kind": "chat"}}}},
        "rlaf": {"model": "tiny", "reward": ["lexical"], "steps": 3, "learning_rate": "3e-4",
            "rewards": {"terms": {"similarity": 0.1}, "weights": {"lexical": 2}}},
        "finetune": {"model": "tiny", "dialogues": "starter", "lora": {"r": 4, "targets": ["q_proj"]}},
        "prefer": {"model": "tiny", "method": "dpo", "pairs": {"margin": 0.2}},
        "experiment": {"model": "tiny", "measure": {"samples": 2}, "finetune": {"epochs": 1}},
    }  # fmt: skip
    for name, tree in settings.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree), "utf-8")


def _read_configurations(folder: Path) -> None:
    from rewardlm import config

    kinds = {
        "measure": config.MeasureSettings, "rlaf": config.RlafSettings, "finetune": config.FinetuneSettings,
        "prefer": config.PreferSettings, "experiment": config.ExperimentSettings,
    }  # fmt: skip
    path = one(folder)
    found = config.build(kinds[path.stem], file=path)
    json.dumps(found.model_dump(mode="json"))


def _thresholds(folder: Path, _: Path) -> None:
    one_of = {"value": 0.4, "ci95": [0.3, 0.5], "reached": 0.2, "redrawn": [0.3, 0.4, 0.5]}
    tree = {
        "judges": {
            "lexical": {
                "label": "toxicity",
                "version": "v",
                "revision": "r",
                "same_share": one_of,
                "same_precision": one_of,
                "old": {"threshold": 0.5, "share": 0.2},
                "map": {"new": [0, 1], "old": [0, 1], "error": 0.1},
                "n": 100,
                "source": "f.csv",
                "date": "2026-01-01",
            }
        }
    }
    (folder / "thresholds.yaml").write_text(yaml.safe_dump(tree), "utf-8")


def _read_thresholds(folder: Path) -> None:
    from rewardlm.scoring.thresholds import thresholds_of

    for matching in ("share", "precision"):
        json.dumps({name: one.model_dump(mode="json") for name, one in thresholds_of(folder, matching).items()})


# --------------------------------------------------------------------------------------------------- other tools' files


def _plain_tables(folder: Path, _: Path) -> None:
    rows = [
        {
            "prompt": text,
            "response": f"Answer {n}",
            "prompt_toxicity": n / 4,
            "finish": "stop",
            "scores.mine": n / 4,
            "scores.other": None if n == 1 else 0.5,
        }
        for n, text in enumerate(TEXTS)
    ]
    write_all(folder, "table", rows, (".csv", ".jsonl", ".parquet", ".json"))
    old = [
        {
            "prompts": text,
            "responses": f"Answer {n}",
            "prompt_score": n / 4,
            "response_score": 0.25,
            "pro_API_response_score": -1,
        }
        for n, text in enumerate(TEXTS)
    ]
    write_all(folder, "old", old, (".csv",))


def _exports(folder: Path, runs: Path) -> None:
    from rewardlm.measuring.exported import export_answers

    for suffix in (".csv", ".jsonl", ".parquet"):
        export_answers([made_run(runs)], folder / f"export{suffix}")


def _lm_eval(folder: Path, _: Path) -> None:
    rows = [
        {
            "doc_id": n, "doc": {"filename": "x", "challenging": n == 1, "prompt": {"text": text, "toxicity": n / 4}},
            "target": "",
            "arguments": {"gen_args_0": {"arg_0": text, "arg_1": {"until": ["\n"]}}}, "resps": [["a", "b"]],
            "filtered_resps": ["a"],
            "filter": "none", "metrics": ["score", "perspective_api_toxicity_score"], "doc_hash": "a",
            "prompt_hash": "b",
            "score": n % 2, "perspective_api_toxicity_score": n / 4,
        }
        for n, text in enumerate(TEXTS)
    ]  # fmt: skip
    write_all(folder, "samples_realtoxicityprompts", rows, (".jsonl",))
    chat = [
        {
            **row,
            "doc": {"question": TEXTS[0], "toxicity": 0.5},
            "arguments": {"gen_args_0": {"arg_0": json.dumps([{"role": "user", "content": row["target"] or "Hi"}])}},
            "toxicity": [0.25, 0.75],
            "metrics": ["toxicity"],
            "filtered_resps": [["a", "b"]],
        }
        for row in rows
    ]
    write_all(folder, "samples_other", chat, (".jsonl",))
    (folder / "array.jsonl").write_text(json.dumps(rows), "utf-8")


def _garak(folder: Path, _: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"entry_type": "start_run setup", "plugins.target_type": "x"},
        {"entry_type": "init", "garak_version": "0.17"},
    ]
    for n, text in enumerate(TEXTS):
        attempt = {
            "entry_type": "attempt", "uuid": f"u{n}", "seq": n, "status": 1,
            "probe_classname": "realtoxicityprompts.RTPBlank",
            "prompt": {"turns": [{"role": "user", "content": {"text": text}}]}, "outputs": [], "detector_results": {},
            "conversations": [],
        }  # fmt: skip
        done = {
            **attempt, "status": 2, "outputs": [{"text": "a"}, None],
            "detector_results": {"unsafe_content.ToxicCommentModel": [0.25, None], "dan.DAN": [0, 1]},
            "conversations": [{"turns": [{"role": "user", "content": {"text": text}},
                        {"role": "assistant", "content": {"text": "a"}}]}],
        }  # fmt: skip
        rows += [attempt, done]
    write_all(folder, "garak.report", rows, (".jsonl",))
    older = [
        {
            **row,
            "prompt": TEXTS[1],
            "outputs": ["a", "b"],
            "messages": [[{"role": "user", "content": "x"}, {"role": "assistant", "content": "a"}]],
        }
        if row["entry_type"] == "attempt"
        else row
        for row in rows
    ]
    write_all(folder, "older.report", older, (".jsonl",))


def _inspect(folder: Path, _: Path) -> None:
    def sample(n: int, text: str, epoch: int) -> dict[str, Any]:
        return {
            "id": f"s{n}", "epoch": epoch, "input": text if n % 2 else [{"role": "user", "content": text}],
            "target": "",
            "messages": [{"role": "system", "content": "Be kind."},
                {"role": "user", "content": [{"type": "text", "text": text}]}, {"role": "assistant", "content": "a"}],
            "output": {"choices": [{"message": {"role": "assistant", "content": "attachment://x"},
                        "stop_reason": "stop"}]},
            "scores": {"toxicity": {"value": n / 4}, "rubric": {"value": {"hate": 0.5, "style": "C"}}},
            "metadata": {"toxicity": 0.5}, "attachments": {"x": "a long answer"},
        }  # fmt: skip

    log = {
        "version": 2,
        "status": "success",
        "eval": {"task": "t", "model": "m"},
        "samples": [sample(n, text, epoch) for n, text in enumerate(TEXTS) for epoch in (1, 2)],
    }
    (folder / "inspect.json").write_text(json.dumps(log), "utf-8")
    with zipfile.ZipFile(folder / "inspect.eval", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.json", json.dumps({name: part for name, part in log.items() if name != "samples"}))
        for one_sample in log["samples"]:  # type: ignore[attr-defined]
            archive.writestr(f"samples/{one_sample['id']}_epoch_{one_sample['epoch']}.json", json.dumps(one_sample))


def _promptfoo(folder: Path, _: Path) -> None:
    rows = [
        {
            "testIdx": n, "promptIdx": 0, "promptId": "p", "provider": {"id": "echo", "label": ""},
            "prompt": {"raw": raw, "label": "{{q}}"},
            "vars": {"question": text}, "response": {"output": "a", "finishReason": "stop"}, "success": True,
            "score": 1, "namedScores": {"toxicity": 0.25},
            "gradingResult": {"pass": True, "score": 1, "namedScores": {"x": 1},
                "componentResults": [{"pass": True, "score": 1, "assertion": {"type": "moderation", "metric": "m"}}]},
            "metadata": {"toxicity": 0.5}, "failureReason": 0,
        }
        for n, text in enumerate(TEXTS)
        for raw in (text, json.dumps([{"role": "user", "content": text}]),
            yaml.safe_dump([{"role": "user", "content": text}]))
    ]  # fmt: skip
    write_all(folder, "promptfoo", rows, (".jsonl",))
    (folder / "promptfoo.json").write_text(
        json.dumps({"evalId": "e", "results": {"version": 3, "results": rows}}), "utf-8"
    )


def _pyrit(folder: Path, _: Path) -> None:
    """The three tables that are read, with PyRIT's own columns (tests/measuring/other_tools has a file of PyRIT's)."""
    shutil.copyfile(Path(__file__).parents[1] / "tests/measuring/other_tools/pyrit.db", folder / "pyrit.db")


def _import(folder: Path) -> None:
    from rewardlm.measuring.imported import import_table

    path = one(folder)
    mapping: tuple[dict[str, str], ...] = (
        {},
        {"scores.mine": "not:score"} if "promptfoo" in path.name else {"scores.x": "toxicity"},
    )
    if path.suffix == ".csv" and path.stem == "table":
        mapping = ({}, {"prompt_id": "prompt", "scores.a": "prompt_toxicity"})
    for number, how in enumerate(mapping):
        label = "PT" if "pyrit" not in path.name else "m"
        if number == 0:
            import_table(path, folder / "out" / "run", label=label, mapping=how)
            use_run(folder / "out" / "run")
        else:
            tolerate(
                lambda how=how, label=label: import_table(path, folder / "out" / "second", label=label, mapping=how)
            )


# ------------------------------------------------------------------------------------------------------------- labels


def _label_folder(folder: Path, runs: Path) -> None:
    from rewardlm.config import LabelSettings
    from rewardlm.labelling.folder import Said
    from rewardlm.measuring.label_sample import label_folder

    run = shutil.copytree(made_run(runs), folder / "PT")
    labels = label_folder(LabelSettings(labels=10), [run], folder / "labels")
    labels.add(
        [
            Said(item.id, name, (1, 0, None)[n % 3], "2026-01-01T00:00:00+00:00", 1.5)
            for n, item in enumerate(labels.items)
            for name in ("ann", "ben")
        ]
    )
    labels.add([Said(labels.items[0].id, "ann", 1, "2026-01-01T00:00:00+00:00", None, True)])


def _use_labels(folder: Path) -> None:
    from rewardlm.labelling.exchange import export
    from rewardlm.labelling.folder import LabelFolder
    from rewardlm.labelling.session import Session
    from rewardlm.labelling.status import status
    from rewardlm.measuring.compare import compare

    labels = LabelFolder.open(folder / "labels")
    as_utf8(labels.question, labels.guideline)
    found = status(labels)
    found.model_dump_json()
    list(found.lines())
    for form, name in (("csv", "l.csv"), ("label-studio", "l.json"), ("argilla", "a.json")):
        export(labels, folder / name, form)  # type: ignore[arg-type]
    Session(labels).next("carl")
    Session(labels).undo("ann", 3)
    compare([folder / "PT"], labels=folder / "labels", n_resamples=100).to_dict()


def _label_files(folder: Path, runs: Path) -> None:
    from rewardlm.labelling.exchange import export
    from rewardlm.labelling.folder import LabelFolder

    _label_folder(folder, runs)
    labels = LabelFolder.open(folder / "labels")
    (folder / "files").mkdir()
    export(labels, folder / "files" / "labels.csv", "csv")
    export(labels, folder / "files" / "studio.json", "label-studio")
    export(labels, folder / "files" / "argilla.json", "argilla")
    (folder / "labels" / "labels.jsonl").unlink()


def _import_labels(folder: Path) -> None:
    from rewardlm.labelling.exchange import import_labels
    from rewardlm.labelling.folder import LabelFolder
    from rewardlm.labelling.status import status

    labels = LabelFolder.open(folder / "labels")
    import_labels(labels, one(folder / "files"))
    status(LabelFolder.open(folder / "labels"))


# ------------------------------------------------------------------------------------------------------- judges, models


def _judge(folder: Path, _: Path) -> None:
    """judge.json of the judges that ship, which are a record each of texts and of pairs."""
    from importlib import resources

    for name in ("starter", "starter_pairs", "witness"):
        (folder / name).mkdir()
        for file in ("judge.json", "adapter_config.json", "config.json"):
            found = resources.files("rewardlm.judges") / name / file
            if found.is_file():
                (folder / name / file).write_bytes(found.read_bytes())


def _use_judge(folder: Path) -> None:
    from rewardlm.judges.card import write_card
    from rewardlm.scoring.lineage import lineage_of
    from rewardlm.scoring.record import all_sources, read_record

    for judge in sorted(folder.iterdir()):
        record = read_record(judge)
        if record is not None:
            list(all_sources(record))
            json.dumps(record.to_dict())
            tolerate(lambda judge=judge: lineage_of(str(judge)))
            write_card(judge, record)


def _list_judges(folder: Path) -> None:
    from rewardlm.judges.listing import list_judges
    from rewardlm.judges.settings import JudgeListSettings

    json.dumps(list_judges(JudgeListSettings(dir=folder)))


def _judge_versions(folder: Path) -> None:
    from rewardlm.scoring.versions import version_of

    for judge in sorted(folder.iterdir()):
        version_of(str(judge))


def _load_judge(folder: Path) -> None:
    from rewardlm.scoring.load import load_scorer
    from rewardlm.scoring.scorer import score_texts

    score_texts(load_scorer(str(folder / "starter")), ["Hello"])


def _whole_judge(folder: Path, _: Path) -> None:
    from importlib import resources

    source = Path(str(resources.files("rewardlm.judges") / "starter"))
    shutil.copytree(source, folder / "starter")


def _adapter(folder: Path, runs: Path) -> None:
    shutil.copytree(trained_run(runs) / "adapter", folder / "adapter")


def _load_adapter(folder: Path) -> None:
    from rewardlm.config import ModelSettings
    from rewardlm.models.load import load_policy
    from rewardlm.models.lora import adapter_hash, load_adapter

    policy = load_policy(ModelSettings(model="tiny", dtype="float32", device="cpu"))
    load_adapter(policy, folder / "adapter")
    adapter_hash(folder / "adapter")


def _steering(folder: Path, runs: Path) -> None:
    from rewardlm import steer

    measured = made_run(runs)
    for method in ("best-of-n", "system", "activation"):
        more = {"run": measured} if method == "activation" else {}
        if method == "best-of-n":
            more = {"judge": "lexical"}
        steer("tiny", method, out=folder / method, progress=False, dtype="float32", **more)  # type: ignore[arg-type]


def _use_steering(folder: Path) -> None:
    from rewardlm.config import ModelSettings
    from rewardlm.models.load import load_policy
    from rewardlm.steering.exchange import export
    from rewardlm.steering.folder import read_steer_folder, refuse_other_model
    from rewardlm.steering.load import load_steering
    from rewardlm.steering.summary import sentences

    for method in sorted(path.parent for path in folder.glob("*/steer.json")):
        found = read_steer_folder(method)
        found.treatment(found.record.strength)
        list(sentences(found.record))
        policy = load_policy(ModelSettings(model="tiny", dtype="float32", device="cpu"))
        refuse_other_model(found, method, policy, None)
        tolerate(lambda found=found: load_steering(found))
        if found.tensors:
            for suffix in (".safetensors", ".gguf"):
                tolerate(lambda method=method, suffix=suffix: export(method, folder.with_name(f"out{suffix}")))


def _gguf(folder: Path, _: Path) -> None:
    """What a model's configuration follows from; the weights are one tensor."""
    import numpy as np
    from gguf import GGUFWriter

    writer = GGUFWriter(str(folder / "model.gguf"), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(16)
    writer.add_block_count(2)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(8)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(list("abcdefgh"))
    writer.add_tensor("token_embd.weight", np.ones((8, 16), dtype=np.float32))
    _written(writer)


def _control_vector(folder: Path, _: Path) -> None:
    import numpy as np
    from gguf import GGUFWriter

    writer = GGUFWriter(str(folder / "vector.gguf"), "controlvector")
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", 2)
    for layer in (1, 2):
        writer.add_tensor(f"direction.{layer}", np.ones(64, dtype=np.float32))
    _written(writer)


def _written(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _read_gguf(folder: Path) -> None:
    from rewardlm.gguf import configuration, gguf_file

    path = gguf_file(folder / "model.gguf")
    assert path is not None
    configuration(path)


def _read_vector(folder: Path) -> None:
    from rewardlm.steering.exchange import _read_control_vector

    _read_control_vector(folder / "vector.gguf")


def _checkpoints(folder: Path, runs: Path) -> None:
    shutil.copytree(trained_run(runs) / "checkpoints", folder / "checkpoints")


def _use_checkpoints(folder: Path) -> None:
    from rewardlm.training.checkpoints import newest_usable

    folders = sorted(one for one in (folder / "checkpoints").iterdir() if one.is_dir())
    for resume in ("exact", "inexact"):
        tolerate(lambda resume=resume: newest_usable(folders, resume=resume, needed=("adapter",)))


# --------------------------------------------------------------------------------------------------------- run folders


def made_run(runs: Path, label: str = "PT") -> Path:
    """A measurement of ``tiny``, made once, with as many optional entries as a run can have."""
    from rewardlm import measure
    from rewardlm.runs import Run

    path = runs / label
    if not path.exists():
        more = {"adapter": trained_run(runs)} if label == "FT" else {}
        run = measure(
            "tiny",
            "starter",
            "lexical",
            limit=12,
            samples=2,
            max_new_tokens=8,
            label=label,
            dtype="float32",
            device="cpu",
            out=path,
            progress=False,
            **more,
        )  # type: ignore[arg-type]
        with (path / "scores.jsonl").open("a") as file:
            for number, one_answer in enumerate(run.generations()):
                for name, value in (("a", number % 5 / 5), ("mean(a,b)", number % 3 / 3)):
                    file.write(
                        json.dumps(
                            {
                                "generation_id": one_answer.id,
                                "scorer": name,
                                "label": "toxicity",
                                "value": value,
                                "reason": None,
                                "failed": False,
                            }
                        )
                        + "\n"
                    )
                file.write(
                    json.dumps(
                        {
                            "generation_id": one_answer.id,
                            "scorer": "mean(a,b)",
                            "label": "disagreement",
                            "value": 0.1,
                            "reason": None,
                            "failed": False,
                        }
                    )
                    + "\n"
                )
        write_jsonl(path / "utility.jsonl", [
            {"task": task, "id": f"{task}{n}", "logprobs": [-1.0 - n % 2, -2.0 + n % 3], "sizes": [4, 5],
                "answer": n % 2}
            if task != "wikitext" else {"task": task, "id": f"w{n}", "logprobs": [-30.0], "sizes": [9], "answer": None}
            for task in ("piqa", "boolq", "wikitext") for n in range(6)
        ])  # fmt: skip
        asked = [
            {"task": task, "id": f"{task}-{n}-0", "prompt_id": f"{task}-{n}", "prompt": "How are you?",
                "about": about, "sample": 0, "text": "Fine." if n % 2 else "I can't.", "n_tokens": 2,
                "finish": "stop", "seed": 0}
            for task,
            about in (("over_refusal", {"set": "own", "kind": "homonym"}),
                ("groups", {"group": "women", "template": "t0"})) for n in range(6)
        ]  # fmt: skip
        write_jsonl(path / "utility_answers.jsonl", asked)
        write_jsonl(
            path / "utility_scores.jsonl",
            [
                {
                    "generation_id": one_answer["id"],
                    "scorer": "lexical",
                    "label": "toxicity",
                    "value": 0.25,
                    "reason": None,
                }
                for one_answer in asked
                if one_answer["task"] == "groups"
            ],
        )
        write_jsonl(path / "unanswered.jsonl", [{"id": "x-5", "reason": "refused"}])
        Run.open(path).update(
            scorers=[*run.meta["scorers"], {"name": "a", "labels": ["toxicity"], "revision": None},
                {"name": "mean(a,b)", "labels": ["toxicity"], "revision": None}],
            primary={"scorer": "lexical", "split": "all", "metric": "toxic_fraction"}, unanswered={"refused": 1},
            served=["m"], served_as=["m"],
            thresholds={"a": {"value": 0.4, "matching": "share", "old": 0.5, "label": "toxicity", "share": 0.2,
                    "n": 100, "source": "f.csv", "redrawn": [0.3, 0.4]}},
            utility={"settings": {"items": 6, "seed": 0},
                "tasks": {"piqa": {"items": 6, "of": 6, "source": "s", "hash": "h"},
                    "wikitext": {"items": 6, "of": 6, "source": "s", "hash": "h"}}, "window": 128, "strength": None,
                    "note": None},
            prompts_fitted_on=1, cost={"seconds": 1.5, "tokens": 100, "passes": 300}, paid_for=["similarity"],
            notes=["a note"],
            treatment={"method": "system", "strength": 1.0, "hash": "h", "settings": {"text": "x"},
                "judges": ["lexical"], "run": None} if label == "ST" else None,
        )  # fmt: skip
    return path


def trained_run(runs: Path) -> Path:
    """A fine-tuning of ``tiny``, made once."""
    from rewardlm import finetune

    path = runs / "train"
    if not path.exists():
        finetune(
            "tiny",
            dialogues="starter-plain",
            limit=4,
            epochs=1,
            dtype="float32",
            device="cpu",
            out=path,
            progress=False,
        )
    return path


def _training(folder: Path, _: Path) -> None:
    """A training by RL, as its records are written."""
    from rewardlm.runs import Run

    run = Run.start(
        folder / "RL",
        kind="rlaf",
        label="RL",
        settings={"steps": 3, "model": "tiny", "reward": ["lexical"], "seed": 0, "max_new_tokens": 8},
    )
    run.append("metrics", [
        {"step": step, "seconds": 1.5, "loss": 0.5, "reward_mean": 0.4, "kl": 0.01 * step, "entropy": 2.0,
            "response_tokens": 7.5, "clip_fraction": 0.1,
         "value_loss": 0.2, "toxicity_mean": 0.3, "learning_rate": 1e-4, "phase_seconds": {"sample": 1.0},
         "warnings": ["something"] if step == 2 else [], "terms": {"similarity": 0.5},
         "toxicity_by_witness": {"witness": 0.4}, "toxicity_by_judge": {"lexical": 0.3}, "disagreement": None,
         "dropped": {"refused": 1}, "cut": {"lexical": 0}, "toxic_fraction": 0.25, "updates": 4, "eval_loss": 2.5,
         "peak_rss_mb": 500.5}
        for step in (1, 2, 3)
    ])  # fmt: skip
    run.append("samples", [
        {"step": step, "prompt": "How?", "response": "So.", "finish": "length", "reward": 0.4, "reason": None,
            "toxicity": 0.3, "by_judge": {"lexical": 0.3}, "by_witness": {"witness": 0.5},
            "terms": {"similarity": 0.2}, "kl": 0.1}
        for step in (1, 3)
    ])  # fmt: skip
    run.update(
        status="finished",
        steps=3,
        stopped=None,
        rewards=["lexical"],
        reward_lineage={"lexical": None},
        model="tiny",
        adapter=None,
        first_loss=0.5,
        last_loss=0.4,
    )


def _use_training(folder: Path) -> None:
    from rich.console import Console

    from rewardlm.reporting.watch import find_training, training_view

    run = find_training(folder / "RL")
    Console(file=io.StringIO(), width=100).print(training_view(run, step=1))
    Console(file=io.StringIO(), width=100).print(training_view(run))
    run.to_pandas()
    run._repr_html_()


def _measured(folder: Path, runs: Path) -> None:
    for label in ("PT", "FT"):
        shutil.copytree(made_run(runs, label), folder / label)


def use_run(path: Path) -> None:
    """As ``compare``, a notebook and ``export`` use a run."""
    from rewardlm.measuring.compare import compare
    from rewardlm.runs import Run

    run = Run.open(path)
    repr(run)
    json.dumps(compare([path], n_resamples=100).to_dict())
    run.to_pandas()
    run._repr_html_()


def _compare(folder: Path) -> None:
    from rich.console import Console

    from rewardlm.measuring.compare import compare
    from rewardlm.reporting.paper import as_latex, as_markdown
    from rewardlm.reporting.subjects import subjects_of
    from rewardlm.reporting.tables import print_comparison
    from rewardlm.runs import Run

    runs = [Run.open(folder / name) for name in ("PT", "FT")]
    found = compare([run.path for run in runs], n_resamples=100)
    json.dumps(found.to_dict(), allow_nan=False)
    labels = [model.label for model in found.models]
    print_comparison(found, Console(file=io.StringIO(), width=120), subjects_of(runs, labels))
    as_utf8(as_latex(found), as_markdown(found))


def _page(folder: Path) -> None:
    from rewardlm.config import CompareSettings
    from rewardlm.reporting.page import build_report

    names = [name for name in ("PT", "FT", "inside", "RL", "judged", "whole") if (folder / name).exists()]
    page = build_report(
        [folder / name for name in names], folder / "page.html", settings=CompareSettings(n_resamples=100)
    )
    as_utf8(page.read_text("utf-8"))


def _gate(folder: Path) -> None:
    from rewardlm import gate
    from rewardlm.reporting.gate import as_junit, as_markdown

    found = gate(folder / "FT", folder / "PT")
    found.model_dump_json()
    as_junit(found)
    as_utf8(as_markdown(found))


def _frontier(folder: Path) -> None:
    from rewardlm import frontier

    frontier([folder / "PT", folder / "FT"]).model_dump_json()


def _export(folder: Path) -> None:
    from rewardlm.measuring.exported import export_answers

    (folder / "exported").mkdir(exist_ok=True)
    for suffix in (".csv", ".jsonl", ".parquet"):
        export_answers([folder / "PT", folder / "FT"], folder / "exported" / f"out{suffix}")


def _notebook(folder: Path) -> None:
    from rewardlm.runs import Run

    for name in ("PT", "FT"):
        run = Run.open(folder / name)
        run.to_pandas()
        run._repr_html_()
        repr(run)


def _view(folder: Path) -> None:
    """As ``rewardlm view`` follows it. Its own guard turns a bug into a problem of the run, which is a find."""
    from rewardlm.viewing.folders import Place
    from rewardlm.viewing.following import Follower, curves_since

    follower = Follower([Place.of(str(folder))])
    for _ in range(20):
        if not follower.look():
            break
    state = follower.state()
    json.dumps(state, allow_nan=False).encode()
    for described in state["runs"]:
        run = follower.get(described["id"])
        if run is None:
            continue
        if run.problem is not None:
            raise AssertionError(f"view met a bug: {run.problem}")
        json.dumps(follower.read(run, lambda one_run: curves_since(one_run, -1, 0)), allow_nan=False).encode()
        for only in ("all", "toxic", "disputed", "cut"):
            json.dumps(
                follower.read(run, lambda one_run, only=only: one_run.answers(step=None, text="a", only=only)),
                allow_nan=False,
            ).encode()


def _interpretation(folder: Path, runs: Path) -> None:
    from rewardlm import interpret

    _measured(folder, runs)
    if not (runs / "inside").exists():
        interpret([made_run(runs), made_run(runs, "FT")], limit=2, out=runs / "inside", progress=False)
    shutil.copytree(runs / "inside", folder / "inside")


def _use_interpretation(folder: Path) -> None:
    from rich.console import Console

    from rewardlm.reporting import interpretation
    from rewardlm.reporting.tables import print_sentences
    from rewardlm.runs import Run

    found = interpretation.load(Run.open(folder / "inside"))
    print_sentences(interpretation.sentences(found), Console(file=io.StringIO(), width=100))
    interpretation.sections([("a", found)])


def _evaluation(folder: Path, _: Path) -> None:
    from rewardlm.judges.evaluate import evaluate
    from rewardlm.judges.settings import JudgeEvaluateSettings

    write_all(
        folder,
        "suite",
        [
            {"text": text + str(n), "label": n % 2, "functionality": ("f", "g")[n % 2], "group": "women"}
            for n in range(8)
            for text in TEXTS
        ],
        (".csv",),
    )
    settings = JudgeEvaluateSettings(
        judge=["lexical", "lexical2"], suite=[str(folder / "suite.csv")], n_resamples=100, speed=False
    )
    evaluate(settings, folder / "judged")


def _use_evaluation(folder: Path) -> None:
    from rewardlm.judges.results import read_results
    from rewardlm.runs import Run

    json.dumps(read_results(Run.open(folder / "judged")))


def _experiment(folder: Path, runs: Path) -> None:
    from rewardlm.runs import Run

    run = Run.start(folder / "whole", kind="experiment", label="whole", settings={"model": "tiny"})
    (folder / "whole" / "measure").mkdir()
    for label in ("PT", "FT"):
        shutil.copytree(made_run(runs, label), folder / "whole" / "measure" / label)
    run.update(runs=["measure/PT", "measure/FT"], status="finished")


def _use_experiment(folder: Path) -> None:
    from rewardlm.runs import Run, expand, known_rewards, measured_in, trained_by

    list(expand([folder / "whole"]))
    for path in measured_in([folder / "whole"]):
        Run.open(path)
        known_rewards(path)
        trained_by(path)


# ------------------------------------------------------------------------------------------------------------- helpers


def one(folder: Path) -> Path:
    """The file that was changed, by the note beside it."""
    here = folder if (folder / NOTE).exists() else folder.parent
    return here / (here / NOTE).read_text("utf-8")


# Beside the changed files: the name of the one that was changed.
NOTE = ".changed"


def as_utf8(*texts: str) -> None:
    """What is read can be written again."""
    for text in texts:
        text.encode()


def tolerate(step: Callable[[], object]) -> None:
    """Do it; the project's own errors are fine."""
    from rewardlm.errors import RewardLMError

    said = ""
    try:
        step()
    except RewardLMError as error:
        said = str(error)
    assert len(said.splitlines()) <= 1, f"several lines: {said!r}"


IMPORTED = (".csv", ".jsonl", ".parquet", ".json")
_RUN = ("PT/*.json", "PT/*.jsonl")
READERS: tuple[Reader, ...] = (
    Reader("prompts", _prompts, ("*",), (_read_prompts,)),
    Reader("dialogues", _dialogues, ("*",), (_read_dialogues,)),
    Reader("preferences", _preferences, ("*",), (_read_preferences, _judge_preferences), only_some=True),
    Reader("labelled texts, suites", _labelled, ("*",), (_read_labelled, _read_suite), only_some=True),
    Reader("an old judge's scores", _scored, ("*",), (_read_scored,)),
    Reader("utility data", _utility, ("*",), (_read_utility,)),
    Reader("configurations", _configurations, ("*",), (_read_configurations,)),
    Reader("thresholds.yaml", _thresholds, ("*",), (_read_thresholds,)),
    Reader("tables of answers", _plain_tables, ("*",), (_import,)),
    Reader("exports", _exports, ("*",), (_import,), heavy=True),
    Reader("lm-eval", _lm_eval, ("*",), (_import,)),
    Reader("garak", _garak, ("*",), (_import,)),
    Reader("inspect_ai", _inspect, ("*",), (_import,)),
    Reader("promptfoo", _promptfoo, ("*",), (_import,)),
    Reader("PyRIT", _pyrit, ("*",), (_import,)),
    Reader("label folders", _label_folder, ("labels/*.json*",), (_use_labels,), heavy=True),
    Reader("labels (CSV, Label Studio, Argilla)", _label_files, ("files/*",), (_import_labels,), heavy=True),
    Reader("judge.json", _judge, ("*/judge.json", "*/*.json"), (_use_judge, _list_judges, _judge_versions)),
    Reader("judge folders", _whole_judge, ("starter/*",), (_load_judge,), heavy=True),
    Reader("adapters", _adapter, ("adapter/adapter*",), (_load_adapter,), heavy=True),
    Reader("steer folders", _steering, ("*/*",), (_use_steering,), heavy=True),
    Reader("GGUF models", _gguf, ("*.gguf",), (_read_gguf,), heavy=True),
    Reader("GGUF control vectors", _control_vector, ("*.gguf",), (_read_vector,), heavy=True),
    Reader("checkpoints", _checkpoints, ("checkpoints/*/*.json",), (_use_checkpoints,), heavy=True),
    Reader("measured runs: compare", _measured, _RUN, (_compare, _notebook), heavy=True),
    Reader("measured runs: page", _measured, _RUN, (_page,), heavy=True),
    Reader("measured runs: gate, export, frontier", _measured, _RUN, (_gate, _export, _frontier), heavy=True),
    Reader("measured runs: view", _measured, _RUN, (_view,), heavy=True),
    Reader("trainings", _training, ("RL/*",), (_use_training, _view)),
    Reader("interpretations", _interpretation, ("inside/*.json*",), (_use_interpretation, _page), heavy=True),
    Reader("evaluations of judges", _evaluation, ("judged/*",), (_use_evaluation, _page), heavy=True),
    Reader("experiments", _experiment, ("whole/run.json",), (_use_experiment, _page), heavy=True),
)  # fmt: skip
