"""``interpret`` as a user gives it: tables, JSON alone on stdout, a page, Ctrl-C and going on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Shell

from rewardlm.config import LoraSettings, ModelSettings
from rewardlm.models.load import load_policy
from rewardlm.models.lora import add_lora, save_adapter

FAST = ["--limit", "5", "--tokens", "2", "--device", "cpu", "look_inside=false", "n_resamples=200"]


@pytest.fixture
def measured(shell: Shell, tmp_path: Path) -> list[Path]:
    import torch

    policy = load_policy(ModelSettings(model="tiny", dtype="float32", device="cpu"))
    add_lora(policy, LoraSettings(r=4), seed=0)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    save_adapter(policy.model, tmp_path / "adapter")
    common = ["--limit", "8", "--max-new-tokens", "6", "--scorer", "lexical", "--device", "cpu", "--dtype", "float32"]
    lean = ["perplexity=false", "counter_narrative=null", "similarity=false"]
    for label, more in (("PT", []), ("FT", ["--adapter", tmp_path / "adapter"])):
        done = shell("measure", "tiny", *common, *more, "--label", label, "--out", tmp_path / label, *lean)
        assert done.code == 0, done
    return [tmp_path / "PT", tmp_path / "FT"]


def test_tables_json_and_a_page(shell: Shell, measured: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "inside"
    done = shell("interpret", *measured, "--out", out, *FAST)
    assert done.code == 0, done
    for part in ("Does FT still read the prompt?", "Drift, nats a token", "by input × gradient", "rewardlm report"):
        assert part in done.out, part
    again = shell("interpret", *measured, "--out", out, *FAST, "--json")
    assert again.code == 0, again
    result = json.loads(again.out)
    assert [model["label"] for model in result["models"]] == ["PT", "FT"]
    assert result["sample"]["pairs"] == 5
    assert shell("report", *measured, out, "--out", tmp_path / "report.html").code == 0
    assert "Does FT still read the prompt?" in (tmp_path / "report.html").read_text("utf-8")


def test_an_interrupt_says_that_the_same_goes_on(
    shell: Shell, measured: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rewardlm.interpreting import records

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(records, "attribute", interrupted)
        done = shell.fails("interpret", *measured, "--out", tmp_path / "inside", *FAST)
    assert done.code == 130
    assert "to go on where it stopped" in done.err
    assert (tmp_path / "inside" / "drift.jsonl").exists()
    assert shell("interpret", *measured, "--out", tmp_path / "inside", *FAST).code == 0
