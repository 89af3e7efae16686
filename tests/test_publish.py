"""A training goes to the hub: what the folder holds, what the card says, and what must not be in either."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel

from fake_hub import FakeHub
from rewardlm.config import FinetuneSettings, MeasureSettings, ModelSettings, PreferSettings
from rewardlm.errors import ConfigError, RunError
from rewardlm.measuring.compare import compare
from rewardlm.measuring.meter import measure
from rewardlm.models.load import load_policy
from rewardlm.publish import prepare
from rewardlm.runs import Run
from rewardlm.training.sft import finetune

TINY = {"model": "tiny", "device": "cpu", "dtype": "float32"}
CANARY = "hf_CANARY31415926"
HOSTILE = "FT | <script>alert(1)</script> ![x](http://evil/) \n# Heading\n```\nrm -rf\n```"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/FT, measure/PT and measure/FT, the last under a label that means harm."""
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("pushed")
    finetune(FinetuneSettings(**TINY, dialogues="starter", limit=8, max_steps=1, validation=0), home / "train" / "FT")
    quick = {**TINY, "limit": 8, "max_new_tokens": 4, "scorer": ["lexical"], "counter_narrative": None}
    quick |= {"similarity": False, "perplexity": False}
    measure(MeasureSettings(**quick, label="PT"), home / "measure" / "PT")
    tuned = MeasureSettings(**quick, label=HOSTILE, adapter=home / "train" / "FT" / "adapter")
    # As if the judge had been its reward, of which the audit warns.
    measure(tuned, home / "measure" / "FT").update(rewards=["lexical"])
    return home


@pytest.fixture
def training(home: Path) -> Run:
    return Run.open(home / "train" / "FT")


def measured(home: Path) -> list[Path]:
    return [home / "measure" / "PT", home / "measure" / "FT"]


def push(*arguments: object, hub: FakeHub | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the hub's library reads its environment when it is imported."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": CANARY, **more}
    if hub is not None:
        environment["HF_ENDPOINT"] = hub.url
    return subprocess.run(
        [sys.executable, "-m", "rewardlm", "push", *map(str, arguments)],
        capture_output=True, text=True, timeout=300, env=environment,
    )  # fmt: skip


def test_the_folder_is_an_adapter_that_peft_loads_as_the_run_left_it(training, tmp_path):
    folder = prepare(training, "me/detox", tmp_path / "push")
    assert sorted(file.name for file in folder.iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "comparison.json", "metrics.jsonl",
    ]  # fmt: skip
    theirs = load_policy(ModelSettings(**TINY))
    ours = load_policy(ModelSettings(**TINY))
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        pushed = PeftModel.from_pretrained(theirs.model, str(folder)).eval()(input_ids=ids).logits
        kept = PeftModel.from_pretrained(ours.model, str(training.path / "adapter")).eval()(input_ids=ids).logits
    assert torch.equal(pushed, kept)


def test_the_card_has_the_comparisons_numbers_and_the_audits_warnings(training, home, tmp_path):
    card = (prepare(training, "me/detox", tmp_path / "push") / "README.md").read_text()
    result = compare(measured(home)).to_dict()
    [change] = [c for c in result["comparisons"] if c["split"] == "all" and c["scorer"] == "lexical"]
    assert f"| {change['n']} | {change['delta']:+.3f}".replace("-", "−").split("|")[1] in card
    low, high = change["delta_ci95"]
    assert f"{100 * low:+.1f}".lstrip("+-")[:3] in card
    assert f"{100 * high:+.1f}".lstrip("+-")[:3] in card
    assert result["warnings"]
    for warning in result["warnings"]:
        assert re.sub(r"\W+", "", warning["message"])[:60] in re.sub(r"\W+", "", card)
    for said in ("starter (Apache-2.0", "learning\\_rate", "rewardlm measure", "less toxic"):
        assert said in card


def test_the_cards_head_is_yaml_and_a_base_without_a_name_is_not_claimed(training, tmp_path):
    card = (prepare(training, "me/detox", tmp_path / "push", licence="apache-2.0") / "README.md").read_text()
    _, head, _ = card.split("---\n", 2)
    about = yaml.safe_load(head)
    assert about["library_name"] == "peft"
    assert about["license"] == "apache-2.0"
    assert "base_model" not in about  # tiny is on no hub


def test_a_hostile_label_stays_text(training, tmp_path):
    card = (prepare(training, "me/detox", tmp_path / "push") / "README.md").read_text()
    assert "<script" not in card
    assert not re.search(r"(?<!\\)\]\(http", card)
    assert "\n# Heading" not in card
    assert card.count("\n```") == 2  # one block of ours, opened and closed


def test_nothing_of_this_machine_is_in_what_is_sent(training, home, tmp_path):
    folder = prepare(training, "me/detox", tmp_path / "push")
    for file in folder.iterdir():
        content = file.read_bytes()
        for place in (str(home), str(Path.home() / ".cache"), str(tmp_path)):
            assert place.encode() not in content, file


def test_a_local_base_goes_by_its_folders_name_alone(training, tmp_path):
    other = tmp_path / "run"
    shutil.copytree(training.path, other)
    run = Run.open(other)
    run.update(model="/secret/place/my-model")
    folder = prepare(run, "me/detox", tmp_path / "push")
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "my-model"
    card = (folder / "README.md").read_text()
    assert "secret" not in card
    assert "What was measured\n\nNothing" in card


def preferred(home: Path, training: Run, out: Path, **changes: object) -> tuple[str, dict[str, str]]:
    """The card of a preference training with these settings, and its table of settings; it holds FT's adapter."""
    run = Run.start(
        out,
        kind="prefer",
        label="P",
        settings=PreferSettings(**TINY, **changes).resolved().model_dump(mode="json"),
    )
    shutil.copytree(training.path / "adapter", out / "adapter")
    run.update(status="finished", steps=40, model="tiny", retain={"source": "the base's own text", "pieces": 256})
    card = (prepare(run, "me/detox", out / "push") / "README.md").read_text().replace("\\", "")
    rows = re.findall(r"^\| (\w+) \| (.+) \|$", card.partition("## How it was trained")[2], re.MULTILINE)
    return card, dict(rows)


def test_the_card_of_preferences_among_drawn_answers_has_what_was_set(training, home, tmp_path):
    card, rows = preferred(home, training, tmp_path / "run", reward=["starter", "lexical"], beta=0.07, rounds=2)
    said = {"method": "dpo", "beta": "0.07", "loss_type": "sigmoid", "sft_weight": "0.2", "rounds": "2"}
    assert said.items() <= rows.items()
    assert "margin=0.3" in rows["pairs"]
    assert "coef=8.0" in rows["retain"]
    assert rows["reward"] == "starter, lexical"
    assert "- prompts: starter (Apache-2.0, written for RewardLM)" in card
    assert not {"preferences", "max_length"} & rows.keys()


def test_the_card_of_preferences_from_a_file_names_the_file_and_no_more_than_was_used(training, home, tmp_path):
    mine = "secret/place/mine.jsonl"
    card, rows = preferred(home, training, tmp_path / "run", preferences=mine, prompts="rtp:packaged")
    assert rows["preferences"] == "mine.jsonl"
    assert "- preferences: mine.jsonl (its licence is not known here" in card
    assert "secret" not in card
    drawing = {"prompts", "part", "limit", "reward", "rewards", "samples", "max_new_tokens", "generation", "pairs"}
    assert not drawing & rows.keys()
    assert {"method", "beta", "loss_type", "steps", "max_length", "retain", "lora", "seed"} <= rows.keys()
    assert not any(unused in card for unused in ("rtp", "starter", "temperature"))


def test_a_card_leaves_out_what_the_method_has_no_use_for(training, home, tmp_path):
    _, kto = preferred(home, training, tmp_path / "kto", method="kto")
    assert "beta" in kto
    assert not {"loss_type", "sft_weight", "label_smoothing"} & kto.keys()
    _, raft = preferred(home, training, tmp_path / "raft", method="raft")
    assert not {"beta", "loss_type", "sft_weight"} & raft.keys()
    assert "per_prompt=2" in raft["pairs"]
    assert "margin" not in raft["pairs"]


@pytest.mark.parametrize(
    "repo", ["detox", "me/", "/detox", "me/de tox", "me/../detox", "a/b/c", "", "me/`x`", "me/x\ny"]
)
def test_what_is_no_repository_is_refused_before_anything_is_written(training, tmp_path, repo):
    with pytest.raises(ConfigError, match="OWNER/NAME") as error:
        prepare(training, repo, tmp_path / "push")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "push").exists()


def test_measurements_and_unfinished_trainings_are_refused(home, tmp_path):
    with pytest.raises(RunError, match="training"):
        prepare(Run.open(home / "measure" / "PT"), "me/detox", tmp_path / "push")
    shutil.copytree(home / "train" / "FT", tmp_path / "run")
    run = Run.open(tmp_path / "run")
    run.update(status="running")
    with pytest.raises(RunError, match="not finished"):
        prepare(run, "me/detox", tmp_path / "push")


@pytest.mark.slow
def test_the_upload_is_one_commit_of_the_folder_and_the_key_is_sent_and_not_kept(training, home, tmp_path):
    with FakeHub() as hub:
        done = push(training.path, "me/detox", "--private", "--out", tmp_path / "push", hub=hub)
        assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{hub.url}/me/detox"
    assert "private" in (hub.created[0].get("visibility"), hub.created[0].get("private") and "private")
    assert {path: content for path, content in hub.files.items() if path != ".gitattributes"} == {
        file.name: file.read_bytes() for file in (tmp_path / "push").iterdir()
    }
    assert all(key == f"Bearer {CANARY}" for method, path, key in hub.asked if "commit" in path or "create" in path)
    seen = done.stdout + done.stderr + "".join(content.decode("latin-1") for content in hub.files.values())
    assert CANARY not in seen
    for file in [*home.rglob("*"), *(tmp_path / "push").iterdir()]:
        assert not file.is_file() or CANARY.encode() not in file.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("status", "said"), [(401, "does not know the key"), (403, "may not write"), (500, "500")])
def test_a_hub_that_refuses_is_one_line_without_the_key(training, tmp_path, status, said):
    with FakeHub(status=status) as hub:
        done = push(training.path, "me/detox", "--out", tmp_path / "push", hub=hub)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert CANARY not in done.stderr
    assert (tmp_path / "push" / "README.md").exists()


@pytest.mark.slow
def test_a_dry_run_asks_nobody(training, tmp_path):
    with FakeHub() as hub:
        done = push(training.path, "me/detox", "--dry-run", "--out", tmp_path / "push", hub=hub)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "push")
    assert not hub.asked


@pytest.mark.slow
def test_without_a_network_it_says_so(training, tmp_path):
    done = push(training.path, "me/detox", "--out", tmp_path / "push", HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert "HF_HUB_OFFLINE" in done.stderr
    assert done.stderr.count("\n") == 1
