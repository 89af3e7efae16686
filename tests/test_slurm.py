"""The SLURM example, with its machines played by two shells on this one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rewardlm.runs import Run

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[1] / "examples" / "slurm.sh"

# Like SLURM's own, as far as the script uses them: each machine's task gets its number, and one that fails ends all.
SRUN = """#!/usr/bin/env bash
shift
SLURM_NODEID=0 "$@" & first=$!
SLURM_NODEID=1 "$@" & second=$!
wait $first && wait $second
"""
SCONTROL = "#!/usr/bin/env bash\necho 127.0.0.1\necho 127.0.0.1\n"
ACCELERATE = f'#!/usr/bin/env bash\nexec {sys.executable} -m accelerate.commands.accelerate_cli "$@"\n'


def submit(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("accelerate", ACCELERATE)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_NNODES": "2",
        "SLURM_JOB_NODELIST": "machine[1-2]",
        "PROCESSES_PER_NODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = ["bash", str(SCRIPT), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_two_machines_fine_tune_together(tmp_path):
    arguments = ["finetune", "tiny", "--limit", "16", "--batch-size", "8", "--device", "cpu", "--out", "run"]
    done = submit(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    found = Run.open(tmp_path / "run")
    assert found.finished
    assert found.meta["processes"] == 2
    assert done.stdout.split() == ["run/adapter"]


def test_without_a_command_it_says_what_it_wants(tmp_path):
    done = submit(tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: sbatch ")
