"""The README keeps its word: its program runs in an empty folder, its commands are CI's."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.slow
def test_the_program_runs_in_an_empty_folder(tmp_path):
    """Pasted as it is; 2,000 steps halve the error of the first 200."""
    (program,) = blocks("python")
    code = [line for line in program.splitlines() if line.strip()]
    assert len(code) <= 21
    (tmp_path / "mine.py").write_text(program)
    env = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    out = subprocess.run(
        [sys.executable, "mine.py"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    first, last = (float(line.split()[-1]) for line in (out[0], out[9]))
    assert last < 0.75 * first
    assert re.fullmatch(
        r"loss \d\.\d+ ± \d\.\d+ after 10 inner steps \(600 tasks, 10 support and 10 query "
        r"examples, transductive, seed 2\)",
        out[10],
    )


def test_the_test_command_is_the_one_of_ci():
    (command,) = [line for line in README.splitlines() if "pytest" in line]
    script = (ROOT / ".ci" / "run").read_text()
    for part in ("-m venv", "pip\" install -q -e '.[test]'", 'python" -m pytest -q -n 2'):
        assert part in script
        assert part.replace('"', "") in command
