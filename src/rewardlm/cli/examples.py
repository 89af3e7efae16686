"""Examples of every command, as its ``--help`` shows them: a line to copy, and what it does. A test tries each."""

from __future__ import annotations

from typing import NamedTuple


class Example(NamedTuple):
    """A command line, and what it does."""

    line: str
    what: str


# By the command's name; "" is rewardlm itself, "judge" the group.
EXAMPLES: dict[str, tuple[Example, ...]] = {
    "": (
        Example("rewardlm demo", "Try everything on a small model, without a download."),
        Example("rewardlm measure smollm2-135m --out runs/PT", "How toxic are a model's answers?"),
        Example("rewardlm init my.yaml", "Write a commented experiment, to change and to run."),
        Example("rewardlm run my.yaml", "Measure, train, measure again, and write the page."),
    ),
    "demo": (
        Example("rewardlm demo", "Measure, train and measure again, then write the page."),
        Example("rewardlm demo --preset full --out runs/full", "The same with more prompts and more steps."),
        Example("rewardlm demo --seed 1 --out runs/again", "Another seed: does the result hold?"),
    ),
    "init": (
        Example("rewardlm init my.yaml", "A whole experiment, for rewardlm run."),
        Example("rewardlm init rlaf.yaml --command rlaf", "The settings of one command, for its --config."),
    ),
    "settings": (
        Example("rewardlm settings measure", "What measure can be told."),
        Example("rewardlm settings judge train", "A command of two words."),
        Example("rewardlm settings rlaf --json | jq -r '.settings[].key'", "The keys alone, for a script."),
    ),
    "run": (
        Example("rewardlm run my.yaml", "Everything that the file says; killed, it goes on where it was."),
        Example("rewardlm run my.yaml model=tiny measure.limit=20 --out runs/try", "A quick try with other settings."),
        Example("rewardlm run my.yaml --json > result.json", "The numbers for a script."),
    ),
    "measure": (
        Example("rewardlm measure smollm2-135m --out runs/PT", "A base model, on the prompts that are included."),
        Example(
            "rewardlm measure smollm2-135m --adapter runs/ft --label FT --out runs/FT", "The same after fine-tuning."
        ),
        Example(
            "rewardlm measure org/model --prompts mine.jsonl --scorer witness,lexical --samples 4 --out runs/mine",
            "Your model and prompts, two judges, four answers a prompt.",
        ),
        Example(
            "rewardlm measure my-model --engine openai --url http://127.0.0.1:8000/v1 --out runs/served",
            "A model that a server runs.",
        ),
    ),
    "score": (
        Example("rewardlm score runs/PT --scorer lexical", "One more judge over answers that are there."),
        Example("rewardlm score runs/PT similarity=true", "How near answers are to their prompts."),
        Example("rewardlm score runs/PT --scorer mycode:judge", "A function of your own, in mycode.py."),
    ),
    "import": (
        Example("rewardlm import answers.csv --label PT --out runs/PT", "A table with columns prompt and response."),
        Example(
            "rewardlm import log.csv --label PT --map prompt=question,response=reply,scores.mine=toxic --out runs/PT",
            "A table whose columns have other names.",
        ),
    ),
    "export": (
        Example("rewardlm export runs/PT runs/FT --out answers.csv", "Every answer with its scores."),
        Example("rewardlm export runs/PT runs/FT --out table.tex", "The comparison's tables for a paper."),
    ),
    "compare": (
        Example("rewardlm compare runs/PT runs/FT runs/RL", "Every model against the first."),
        Example("rewardlm compare runs/PT runs/RL --scorer witness", "By one judge."),
        Example("rewardlm compare runs/PT runs/RL --json | jq '.comparisons[0].delta'", "One number, for a script."),
    ),
    "finetune": (
        Example("rewardlm finetune smollm2-135m --out runs/ft", "On the dialogues that are included."),
        Example(
            "rewardlm finetune org/model --dialogues mine.jsonl --epochs 3 --out runs/mine", "Your model and dialogues."
        ),
    ),
    "rlaf": (
        Example("rewardlm rlaf smollm2-135m --part train --out runs/rl", "PPO against the judge that is included."),
        Example("rewardlm rlaf smollm2-135m --adapter runs/ft --part train --out runs/rl", "After fine-tuning."),
        Example(
            "rewardlm rlaf org/model --algorithm grpo --reward mycode:judge --prompts mine.jsonl --out runs/mine",
            "GRPO, with your own reward.",
        ),
    ),
    "watch": (
        Example("rewardlm watch runs/rl", "How a training goes now."),
        Example("rewardlm watch runs/rl --follow", "Go on showing until it ends."),
    ),
    "merge": (
        Example("rewardlm merge smollm2-135m --adapter runs/ft --out merged", "One model, without peft."),
        Example(
            "rewardlm merge smollm2-135m --adapter runs/ft --dtype bfloat16 --out merged", "The same, half as large."
        ),
    ),
    "judge": (
        Example("rewardlm judge list", "Which judges there are, and what they are worth."),
        Example("rewardlm judge evaluate lexical --suite mine.csv", "What a judge gets right on your texts."),
    ),
    "judge list": (
        Example("rewardlm judge list", "All judges."),
        Example("rewardlm judge list starter witness --json", "Two of them, for a script."),
        Example("rewardlm judge list --dir judges", "Those that you trained, too."),
    ),
    "judge train": (
        Example("rewardlm judge train --data labelled.csv --out judges/mine", "On your own labelled texts."),
        Example(
            "rewardlm judge train --data labelled.csv --encoder org/encoder --epochs 2 --out judges/mine",
            "Another encoder.",
        ),
    ),
    "judge evaluate": (
        Example("rewardlm judge evaluate starter,lexical --suite mine.csv", "Two judges on your texts."),
        Example("rewardlm judge evaluate judges/mine --suite hatecheck --card", "And write it into the judge's card."),
    ),
    "judge train-pairs": (
        Example(
            "rewardlm judge train-pairs --dialogues DIALOCONAN.csv --out judges/pairs",
            "A judge of counter-narratives.",
        ),
    ),
    "judge evaluate-pairs": (
        Example("rewardlm judge evaluate-pairs starter_pairs", "What the judge that is included gets right."),
        Example("rewardlm judge evaluate-pairs judges/pairs --dialogues mine.jsonl --json", "Yours, for a script."),
    ),
    "interpret": (
        Example("rewardlm interpret runs/PT runs/FT --out runs/inside", "What training changed inside."),
        Example(
            "rewardlm interpret runs/PT runs/FT --limit 10 look_inside=false --out runs/quick",
            "Ten answers, without the residual stream.",
        ),
    ),
    "report": (
        Example("rewardlm report runs/PT runs/FT runs/RL", "report.html, one page about all of them."),
        Example("rewardlm report runs/PT runs/FT --title 'My model' --out page.html", "Another title and file."),
    ),
    "push": (
        Example("rewardlm push runs/rl me/detoxified --dry-run", "See the card first."),
        Example("rewardlm push runs/rl me/detoxified --license apache-2.0 --private", "Upload it."),
    ),
    "doctor": (
        Example("rewardlm doctor", "What is here."),
        Example("rewardlm doctor smollm2-135m --max-new-tokens 64", "What fits into this machine's memory."),
    ),
}
