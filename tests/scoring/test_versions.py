"""A judge that is changed has another version; one that is only measured keeps it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from small_judges import LABELS, save_adapter, tiny_encoder

from rewardlm.scoring.load import load_scorer
from rewardlm.scoring.record import shipped_folder
from rewardlm.scoring.versions import UNVERSIONED, version_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("versions")
    save_adapter(folder / "judge", tiny_encoder(folder / "encoder"))
    return folder / "judge"


@pytest.fixture
def judge(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "judge"))


def test_the_weights_are_hashed_as_everybody_can(judge: Path) -> None:
    found = version_of(str(judge))
    digest = hashlib.sha256((judge / "adapter_model.safetensors").read_bytes()).hexdigest()
    assert found.weights == f"sha256:{digest}"
    assert len(found.version) == 12
    # The loaded judge states the same weights.
    assert str(load_scorer(str(judge)).revision).startswith(digest)  # type: ignore[attr-defined]


def change_record(judge: Path, **entries: object) -> None:
    path = judge / "judge.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_whatever_changes_a_score_changes_the_version(judge: Path) -> None:
    seen = {version_of(str(judge)).version}
    curve = {"kind": "isotonic", "x": [0.1, 0.9], "y": [0.2, 0.8]}
    for entries in (
        {"calibration": {"hate": curve}},
        {"max_length": 16},
        {"labels": LABELS[::-1]},
        {"main": "hate"},
        {"encoder_revision": "0" * 40},
        {"problem_type": "single_label_classification"},
    ):
        change_record(judge, **entries)
        version = version_of(str(judge)).version
        assert version not in seen, entries
        seen.add(version)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        with (judge / name).open("ab") as file:
            file.write(b" ")
        version = version_of(str(judge)).version
        assert version not in seen, name
        seen.add(version)


def test_an_encoder_that_was_edited_is_another_version(judge: Path) -> None:
    """The adapter's folder stays as it is, and its scores don't."""
    encoder = Path(str(json.loads((judge / "judge.json").read_text())["encoder"]))
    before = version_of(str(judge))
    weights = encoder / "model.safetensors"
    data = weights.read_bytes()
    try:
        weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert version_of(str(judge)).version != before.version
        assert version_of(str(judge)).weights == before.weights
    finally:
        weights.write_bytes(data)
    assert version_of(str(judge)) == before


def test_figures_and_a_card_change_nothing(judge: Path) -> None:
    before = version_of(str(judge))
    speed = {"texts_per_second": 3, "ms_per_text": 1, "ms_one_text": 2, "batch": 1, "tokens_per_text": 9, "threads": 1}
    change_record(judge, metrics={}, speed={**speed, "cpus": 1}, seed=7, command="other")
    (judge / "README.md").write_text("another card")
    assert version_of(str(judge)) == before


def test_a_label_and_a_copy_elsewhere_are_the_same_judge(judge: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(judge, tmp_path / "copy")
    versions = {version_of(name).version for name in (str(judge), f"{judge}#hate", str(copy))}
    assert len(versions) == 1


def test_an_ensembles_version_follows_its_members(judge: Path) -> None:
    one, other = f"mean({judge},lexical)", f"max({judge},lexical)"
    before = version_of(one)
    assert before.version != version_of(other).version
    change_record(judge, max_length=16)
    assert version_of(one).version != before.version
    assert version_of(f"mean({judge},module:function)").version == UNVERSIONED


def test_judges_that_ship_have_versions_without_being_loaded() -> None:
    for name in ("starter", "starter-large", "witness"):
        folder = shipped_folder(name)
        assert folder is not None
        found = version_of(name)
        digest = hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()
        assert found.weights == f"sha256:{digest}"
    assert version_of("toxicity+hate").version not in (UNVERSIONED, version_of("starter").version)


def test_what_has_no_files_here_has_the_version_that_it_states() -> None:
    assert version_of("module:function").version == UNVERSIONED
    assert version_of("owner/name#toxic").version == UNVERSIONED
    commit = "0123456789abcdef" * 2 + "01234567"
    found = version_of("owner/name#toxic", revision=commit)
    assert (found.version, found.weights) == (commit, commit)
    assert version_of("perspective", revision="v1alpha1").weights is None
