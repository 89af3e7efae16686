"""Examples of every command, as its ``--help`` shows them: a line to copy, and what it does. A test tries each."""

from __future__ import annotations

from typing import NamedTuple


class ExampleLine(NamedTuple):
    """A command line, and what it does."""

    line: str
    what: str


# By the command's name; "" is rewardlm itself, "judge" the group.
EXAMPLES: dict[str, tuple[ExampleLine, ...]] = {
    "": (
        ExampleLine("rewardlm demo", "Try everything on a small model, without a download."),
        ExampleLine("rewardlm measure smollm2-135m --out runs/PT", "How toxic are a model's answers?"),
        ExampleLine("rewardlm init my.yaml", "Write a commented experiment, to change and to run."),
        ExampleLine("rewardlm run my.yaml", "Measure, train, measure again, and write the page."),
    ),
    "demo": (
        ExampleLine("rewardlm demo", "Measure, train and measure again, then write the page."),
        ExampleLine("rewardlm demo --preset full --out runs/full", "The same with more prompts and more steps."),
        ExampleLine("rewardlm demo --seed 1 --out runs/again", "Another seed: does the result hold?"),
    ),
    "init": (
        ExampleLine("rewardlm init my.yaml", "A whole experiment, for rewardlm run."),
        ExampleLine("rewardlm init rlaf.yaml --command rlaf", "The settings of one command, for its --config."),
    ),
    "settings": (
        ExampleLine("rewardlm settings measure", "Every setting of measure."),
        ExampleLine("rewardlm settings judge train", "A command of two words."),
        ExampleLine("rewardlm settings rlaf --json | jq -r '.settings[].key'", "The keys alone, for a script."),
    ),
    "run": (
        ExampleLine("rewardlm run my.yaml", "Everything that the file says; run it again to resume it."),
        ExampleLine(
            "rewardlm run my.yaml model=tiny measure.limit=20 --out runs/try", "A quick try with other settings."
        ),
        ExampleLine("rewardlm run my.yaml --json > result.json", "The numbers for a script."),
    ),
    "measure": (
        ExampleLine("rewardlm measure smollm2-135m --out runs/PT", "A base model, on the included prompts."),
        ExampleLine(
            "rewardlm measure smollm2-135m --adapter runs/ft --label FT --out runs/FT", "The same after fine-tuning."
        ),
        ExampleLine(
            "rewardlm measure org/model --prompts mine.jsonl --scorer witness,lexical --samples 4 --out runs/mine",
            "Your model and prompts, two judges, four answers per prompt.",
        ),
        ExampleLine(
            "rewardlm measure my-model --engine openai --url http://127.0.0.1:8000/v1 --out runs/served",
            "A model that a server runs.",
        ),
    ),
    "score": (
        ExampleLine("rewardlm score runs/PT --scorer lexical", "One more judge for stored answers."),
        ExampleLine("rewardlm score runs/PT similarity=true", "How near answers are to their prompts."),
        ExampleLine("rewardlm score runs/PT --scorer mycode:judge", "A function of your own, in mycode.py."),
    ),
    "import": (
        ExampleLine(
            "rewardlm import answers.csv --label PT --out runs/PT", "A table with columns prompt and response."
        ),
        ExampleLine(
            "rewardlm import log.csv --label PT --map prompt=question,response=reply,scores.mine=toxic --out runs/PT",
            "A table whose columns have other names.",
        ),
    ),
    "export": (
        ExampleLine("rewardlm export runs/PT runs/FT --out answers.csv", "Every answer with its scores."),
        ExampleLine("rewardlm export runs/PT runs/FT --out table.tex", "The comparison's tables for a paper."),
    ),
    "compare": (
        ExampleLine("rewardlm compare runs/PT runs/FT runs/RL", "Every model against the first."),
        ExampleLine("rewardlm compare runs/PT runs/RL --scorer witness", "By one judge."),
        ExampleLine(
            "rewardlm compare runs/PT runs/RL --json | jq '.comparisons[0].delta'", "One number, for a script."
        ),
    ),
    "power": (
        ExampleLine("rewardlm power --effect 0.05", "How many prompts show that 10 % became 5 %?"),
        ExampleLine("rewardlm power runs/PT --effect 0.1 --out power.html", "From a pilot, with a picture."),
        ExampleLine("rewardlm power runs/PT --prompts 200 --samples 8", "What does a planned size see?"),
    ),
    "gate": (
        ExampleLine("rewardlm gate runs/RL --against runs/PT", "Less toxic, and nothing else worse?"),
        ExampleLine(
            "rewardlm gate runs/RL --against runs/PT --junit gate.xml --summary gate.md",
            "With files for CI: JUnit, and a table for a pull request.",
        ),
        ExampleLine("rewardlm gate runs/RL --against runs/PT margins.topic=0.2 margins.groups=null", "Other margins."),
    ),
    "frontier": (
        ExampleLine("rewardlm frontier runs/PT runs/FT runs/RL runs/best", "Does training beat steering?"),
        ExampleLine("rewardlm frontier runs/PT runs/FT runs/best --out frontier.html", "The same as a page."),
    ),
    "finetune": (
        ExampleLine("rewardlm finetune smollm2-135m --out runs/ft", "On the included dialogues."),
        ExampleLine(
            "rewardlm finetune org/model --dialogues mine.jsonl --epochs 3 --out runs/mine", "Your model and dialogues."
        ),
    ),
    "rlaf": (
        ExampleLine("rewardlm rlaf smollm2-135m --part train --out runs/rl", "PPO against the included judge."),
        ExampleLine("rewardlm rlaf smollm2-135m --adapter runs/ft --part train --out runs/rl", "After fine-tuning."),
        ExampleLine(
            "rewardlm rlaf org/model --algorithm grpo --reward mycode:judge --prompts mine.jsonl --out runs/mine",
            "GRPO, with your own reward.",
        ),
    ),
    "prefer": (
        ExampleLine("rewardlm prefer smollm2-135m --part train --out runs/dpo", "DPO on pairs of its own answers."),
        ExampleLine(
            "rewardlm prefer smollm2-135m --method raft --answers runs/dpo --part train --out runs/raft",
            "Its best answers, from the same samples.",
        ),
        ExampleLine("rewardlm prefer org/model --preferences mine.jsonl --out runs/mine", "Your own preferences."),
    ),
    "view": (
        ExampleLine("rewardlm view runs/my-experiment", "Follow an experiment in the browser, and read its results."),
        ExampleLine("rewardlm view runs/PT runs/RL --port 8765 --no-browser", "Two runs, at a fixed address."),
    ),
    "watch": (
        ExampleLine("rewardlm watch runs/rl", "How a training run is going."),
        ExampleLine("rewardlm watch runs/rl --follow", "Keep showing it until it ends."),
    ),
    "merge": (
        ExampleLine("rewardlm merge smollm2-135m --adapter runs/ft --out merged", "One model, without peft."),
        ExampleLine(
            "rewardlm merge smollm2-135m --adapter runs/ft --dtype bfloat16 --out merged", "The same, half as large."
        ),
    ),
    "judge": (
        ExampleLine("rewardlm judge list", "Which judges there are, and how good they are."),
        ExampleLine("rewardlm judge evaluate lexical --suite mine.csv", "What a judge gets right on your texts."),
    ),
    "judge list": (
        ExampleLine("rewardlm judge list", "All judges."),
        ExampleLine("rewardlm judge list starter witness --json", "Two of them, for a script."),
        ExampleLine("rewardlm judge list --dir judges", "Those that you trained, too."),
    ),
    "judge train": (
        ExampleLine("rewardlm judge train --data labelled.csv --out judges/mine", "On your own labelled texts."),
        ExampleLine(
            "rewardlm judge train --data labelled.csv --encoder org/encoder --epochs 2 --out judges/mine",
            "Another encoder.",
        ),
    ),
    "judge evaluate": (
        ExampleLine("rewardlm judge evaluate starter,lexical --suite mine.csv", "Two judges on your texts."),
        ExampleLine(
            "rewardlm judge evaluate judges/mine --suite hatecheck --card", "And write it into the judge's card."
        ),
    ),
    "judge serve": (
        ExampleLine("rewardlm judge serve starter", "Perspective's requests, answered at http://127.0.0.1:8000."),
        ExampleLine("rewardlm judge serve starter,witness --port 0", "Two judges, on a port that is free."),
    ),
    "judge migrate": (
        ExampleLine(
            "rewardlm judge migrate scored.csv --to starter --out moved", "From Perspective's stored scores to starter."
        ),
        ExampleLine(
            "rewardlm judge migrate old.csv --to lexical --text-column comment --score-column TOXICITY --out moved",
            "A table whose columns have other names.",
        ),
    ),
    "judge train-pairs": (
        ExampleLine(
            "rewardlm judge train-pairs --dialogues DIALOCONAN.csv --out judges/pairs",
            "A judge of counter-narratives.",
        ),
    ),
    "judge evaluate-pairs": (
        ExampleLine("rewardlm judge evaluate-pairs starter_pairs", "What the included judge gets right."),
        ExampleLine("rewardlm judge evaluate-pairs judges/pairs --dialogues mine.jsonl --json", "Yours, for a script."),
    ),
    "label": (
        ExampleLine("rewardlm label open runs/PT runs/FT --out labels", "Label 200 answers of two models."),
        ExampleLine("rewardlm compare runs/PT runs/FT --labels labels", "Shares and changes, corrected by the labels."),
    ),
    "label open": (
        ExampleLine("rewardlm label open runs/PT runs/FT --out labels", "Label 200 answers of two models."),
        ExampleLine(
            "rewardlm label open runs/PT runs/FT --labels 400 --split toxic_prompts --out labels",
            "More of them, answers to toxic prompts only.",
        ),
        ExampleLine("rewardlm label open runs/PT --no-page --out labels", "To be labelled in another program."),
    ),
    "label export": (
        ExampleLine("rewardlm label export labels labels.csv", "A table, for a spreadsheet."),
        ExampleLine("rewardlm label export labels tasks.json --format label-studio", "Tasks for Label Studio."),
    ),
    "label import": (
        ExampleLine("rewardlm label import labels filled-in.csv", "Labels from a table that people filled in."),
    ),
    "label status": (ExampleLine("rewardlm label status labels", "How far it is, and whether labellers agree."),),
    "steer": (
        ExampleLine(
            "rewardlm steer fit smollm2-135m --method best-of-n --out steer/best", "Give the best of n answers."
        ),
        ExampleLine(
            "rewardlm measure smollm2-135m --steer steer/best --strength 4 --out runs/best", "What that is worth."
        ),
    ),
    "steer fit": (
        ExampleLine("rewardlm steer fit smollm2-135m --method system --out steer/system", "A system prompt."),
        ExampleLine(
            "rewardlm steer fit smollm2-135m --method best-of-n --judge starter --out steer/best",
            "The least toxic of n answers, by a judge.",
        ),
        ExampleLine(
            "rewardlm steer fit smollm2-135m --method activation --run runs/PT --judge starter --out steer/vector",
            "A direction in the residual stream, from a scored run.",
        ),
        ExampleLine(
            "rewardlm steer fit smollm2-135m --method dexperts --run runs/PT --judge starter --out steer/experts",
            "Two adapters, trained on the run's harmless and toxic answers.",
        ),
    ),
    "steer export": (
        ExampleLine("rewardlm steer export steer/vector --out vector.gguf", "A control vector for llama.cpp."),
        ExampleLine("rewardlm steer export steer/vector --out vector.safetensors", "One file for other programs."),
    ),
    "steer import": (
        ExampleLine("rewardlm steer import smollm2-135m vector.gguf --out steer/theirs", "Somebody else's vector."),
    ),
    "interpret": (
        ExampleLine("rewardlm interpret runs/PT runs/FT --out runs/inside", "What training changed inside."),
        ExampleLine(
            "rewardlm interpret runs/PT runs/FT --limit 10 look_inside=false --out runs/quick",
            "Ten answers, without the residual stream.",
        ),
    ),
    "report": (
        ExampleLine("rewardlm report runs/PT runs/FT runs/RL", "report.html, one page about all of them."),
        ExampleLine("rewardlm report runs/PT runs/FT --title 'My model' --out page.html", "Another title and file."),
    ),
    "push": (
        ExampleLine("rewardlm push runs/rl me/detoxified --dry-run", "See the card first."),
        ExampleLine("rewardlm push runs/rl me/detoxified --license apache-2.0 --private", "Upload it."),
    ),
    "doctor": (
        ExampleLine("rewardlm doctor", "What is installed."),
        ExampleLine("rewardlm doctor smollm2-135m --max-new-tokens 64", "What fits into this machine's memory."),
    ),
}
