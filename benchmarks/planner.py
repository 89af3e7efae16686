"""Whether the memory planner is right: what `rewardlm doctor` says of a command before it starts, beside the peak of
that command in a fresh process.

    make bench-planner     or  python benchmarks/planner.py [--models NAME…] [--commands …] [--precisions …] [--json]

``small`` (31 million parameters, Llama) and ``medium`` (354 million, GPT-NeoX) are random models, made here. All rows
of a case are equally long, so that the planner is told what comes. The process's own share, torch and judges, is
measured by the planner in a process of its own, as doctor does. A row is right within 15 %.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memory import RUN
from rich.console import Console
from rich.table import Table
from work import environment

TOLERANCE = 0.15
NEW = 32
SAMPLES = 4  # of prefer, for each prompt
# For each command: the setting that says how much is run side by side, and two values.
CASES = {
    "measure": ("batch_tokens", [2048, 8192]),
    "finetune": ("micro_batch_size", [2, 8]),
    "rlaf": ("micro_batch_tokens", [512, 1536]),
    "prefer": ("micro_batch_size", [2, 8]),
}
QUESTION = "why do they all come here and take what is ours and what can be done about it by us and by you "
PROCESS = """
import json, torch
from rewardlm.planner import process_bytes
print(json.dumps(process_bytes(torch.device("cpu"))))
"""


def main() -> None:
    """Every case as one table, or JSON; exit code 1 if one is wrong by more than the tolerance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["smollm2-135m", "small", "medium"])
    parser.add_argument("--commands", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--checkpointing", action="store_true", help="The trainings with gradient checkpointing, too.")
    parser.add_argument("--dropout", type=float, default=0.0, help="lora.dropout of fine-tuning.")
    parser.add_argument("--repeat", type=int, default=6, help="How often the question is repeated in a prompt.")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for row in cases(options, Path(folder)):
            rows.append(row)
            print(f"{row['case']}: {row['predicted_mib']:.0f} against {row['measured_mib']:.0f} MiB", file=sys.stderr)
    if options.json:
        print(json.dumps(rows))
    else:
        table = Table("case", "predicted, MiB", "measured", "predicted / measured", "of it process")
        for row in rows:
            numbers = (f"{row['predicted_mib']:,.0f}", f"{row['measured_mib']:,.0f}", f"{row['ratio']:.2f}")
            table.add_row(row["case"], *numbers, f"{row['process_mib']:,.0f}")
        Console(width=120).print(table)
    wrong = [row["case"] for row in rows if abs(row["ratio"] - 1) > TOLERANCE]
    if wrong:
        sys.exit(f"off by more than {TOLERANCE:.0%}: {', '.join(wrong)}")


def cases(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Predicted and measured, one case after the other."""
    import torch

    from rewardlm.planner import planners

    done = subprocess.run([sys.executable, "-c", PROCESS], check=True, capture_output=True, env=environment(1))
    process = json.loads(done.stdout)
    for name in options.models:
        model = name if name not in MADE else str(made(name, folder))
        texts = texts_of(model, folder, options.repeat)
        for planner in planners(model, options.precisions, torch.device("cpu"), process):
            precision = planner.precision
            for command in options.commands:
                setting, values = CASES[command]
                for value in values:
                    for recompute in [False, True] if options.checkpointing and command != "measure" else [False]:
                        dropout = options.dropout if command == "finetune" else 0.0
                        need = planner.need(command, work_of(command, value, texts, recompute, dropout))
                        extra = [f"{setting}={value}", *(["gradient_checkpointing=true"] if recompute else [])]
                        extra += [f"lora.dropout={dropout}"] if dropout else []
                        measured = peak_of(command, model, precision, extra, texts, folder)
                        yield {
                            "case": " ".join([name, precision, command, *extra]),
                            "predicted_mib": need.total / 2**20,
                            "measured_mib": measured,
                            "ratio": need.total / 2**20 / measured,
                            "process_mib": need.process / 2**20,
                        }


def work_of(command: str, value: int, texts: dict[str, Any], recompute: bool, dropout: float) -> Any:
    """The case as the planner is asked about it."""
    from rewardlm.config import LoraSettings
    from rewardlm.planner import Work

    tokens = texts["pair_tokens"] if command == "finetune" else texts["prompt_tokens"] + NEW
    by_rows = command in ("finetune", "prefer")
    # The prefix that all prompts share is no part of a batch's positions, but is in every row's cache.
    positions = {"measure": value, "prefer": 8192}.get(command, 4096)
    answers = texts["n"] * (SAMPLES if command == "prefer" else 1)
    slots = min(answers, max(1, positions // (tokens - texts["shared"])))
    rows = min(value if by_rows else max(1, value // tokens), texts["n"])
    lora = LoraSettings(dropout=dropout)
    return Work(tokens, NEW, slots=slots, rows=rows, recompute=recompute, answers=answers, lora=lora)


def peak_of(command: str, model: str, precision: str, extra: list[str], texts: dict[str, Any], folder: Path) -> float:
    """The peak memory of the command's process, in MiB."""
    run, peak = folder / "run", folder / "peak"
    loaded = ["--load", precision] if precision in ("8bit", "4bit") else ["--dtype", precision]
    common = [command, model, *loaded, "--device", "cpu", "--out", str(run), *extra]
    asked = ["--prompts", str(texts["prompts"]), "--max-new-tokens", str(NEW)]
    arguments = {
        "measure": [*asked, "--scorer", "starter,witness,lexical"],
        "finetune": ["--dialogues", str(texts["dialogues"]), "validation=0", "max_steps=1", "batch_size=8"],
        "rlaf": [*asked, "--reward", "starter", "--steps", "1", "--batch-size", str(texts["n"]), "minibatches=1",
                 "ppo_epochs=1"],
        # Whatever the judge says of them: the memory is what counts here.
        "prefer": [*asked, "--reward", "starter", "--steps", "1", "--batch-size", "8", "--samples", str(SAMPLES),
                   "--witness", "none", "pairs.margin=0.0001", "pairs.topic=0", "pairs.topic_gap=null"],
    }  # fmt: skip
    subprocess.run(["rm", "-rf", str(run)], check=True)
    subprocess.run(
        [sys.executable, "-c", RUN, *common, *arguments[command], str(peak)],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment(1),
    )
    return float(peak.read_text())


def texts_of(model: str, folder: Path, repeat: int, n: int = 32) -> dict[str, Any]:
    """``n`` prompts and dialogues of one length, as files, and how many tokens they have."""
    from transformers import AutoTokenizer

    from rewardlm.config import ChatSettings
    from rewardlm.models.load import _locate, chat_format
    from rewardlm.models.logprobs import shared_prefix
    from rewardlm.types import Message

    chat = chat_format(AutoTokenizer.from_pretrained(_locate(model)[0]), ChatSettings())
    question, answer = QUESTION * repeat, QUESTION
    with open(folder / "prompts.jsonl", "w") as prompts, open(folder / "dialogues.jsonl", "w") as dialogues:
        for row in range(n):
            text = f"{row:02d} {question}"
            prompts.write(json.dumps({"id": str(row), "prompt": text}) + "\n")
            turns = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
            dialogues.write(json.dumps({"id": str(row), "messages": turns}) + "\n")
    asked, other = ([Message("user", f"{number} {question}")] for number in ("00", "31"))
    prompts_alike = [chat.encode_prompt(asked), chat.encode_prompt(other)]
    return {
        "n": n,
        "prompts": folder / "prompts.jsonl",
        "dialogues": folder / "dialogues.jsonl",
        "prompt_tokens": len(prompts_alike[0]),
        "shared": shared_prefix(prompts_alike),
        "pair_tokens": len(chat.encode_pair(asked, Message("assistant", answer)).input_ids),
    }


def _small() -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=16_384, hidden_size=384, intermediate_size=1024, num_hidden_layers=10, num_attention_heads=6,
        num_key_value_heads=6, max_position_embeddings=1024, tie_word_embeddings=False,
    )  # fmt: skip


def _medium() -> Any:
    from transformers import GPTNeoXConfig

    return GPTNeoXConfig(
        vocab_size=50_304, hidden_size=1024, intermediate_size=4096, num_hidden_layers=20, num_attention_heads=16,
        max_position_embeddings=1024,
    )  # fmt: skip


MADE = {"small": _small, "medium": _medium}


def made(name: str, folder: Path) -> Path:
    """The random model as a folder, with the tokenizer of ``tiny``."""
    import torch
    from transformers import AutoModelForCausalLM

    from rewardlm.config import ModelSettings
    from rewardlm.models.load import load_policy

    tokenizer = load_policy(ModelSettings(model="tiny", device="cpu")).tokenizer
    config = MADE[name]()
    config.bos_token_id = config.eos_token_id = config.pad_token_id = tokenizer.eos_token_id
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / name)
    return folder / name


if __name__ == "__main__":
    main()
