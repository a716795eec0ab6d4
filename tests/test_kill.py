"""SIGKILL at random moments: nothing is lost but time, and no bit is other than it would be.

The oracle is a run of the same command that nothing disturbed.
"""

import random
import signal
import time

import pytest

from children import (
    SMALL,
    environment,  # noqa: F401
    fingerprints,
    finish,
    last_logged_step,
    rows,
    start,
    wait_until,
)
from maml_jax import checkpoints

KILLS = 12
RUN = [*SMALL, "--outer-steps", "1000", "--validate-every", "100", "--checkpoint-every", "20"]


def inode(path):
    return path.stat().st_ino if path.exists() else None


def kill_in_training(child, run_dir, before, rng):
    """Kills after a few more calls, at any moment of the next."""
    log, calls = run_dir / "metrics.jsonl", rng.randrange(1, 7)
    newest = max(checkpoints.steps(run_dir / "checkpoints"), default=0)
    # A resumed run writes the log anew without the lines after its checkpoint.
    wait_until(lambda: inode(log) not in (None, before), child)
    wait_until(lambda: last_logged_step(run_dir) >= newest + 10 * calls, child)
    time.sleep(rng.uniform(0.0, 0.03))
    child.send_signal(signal.SIGKILL)


def kill_in_save(child, run_dir, before, rng):
    """Kills while a checkpoint is being written or an old one removed."""
    log, saved = run_dir / "metrics.jsonl", run_dir / "checkpoints"
    wait_until(lambda: inode(log) not in (None, before), child)
    wait_until(lambda: any(saved.glob(".tmp-*")), child)
    time.sleep(rng.uniform(0.0, 0.05))
    child.send_signal(signal.SIGKILL)


@pytest.mark.slow
def test_twelve_kills_change_no_bit(tmp_path, environment):  # noqa: F811
    rng = random.Random(0)
    code, _, err = finish(start([*RUN, "--run-dir", tmp_path / "whole"], environment))
    assert (code, err) == (0, "")
    run_dir, mid_save = tmp_path / "killed", 0
    words = [*RUN, "--run-dir", run_dir]
    for number in range(KILLS):
        before = inode(run_dir / "metrics.jsonl")
        child = start(words, environment)
        kill = kill_in_save if number % 2 else kill_in_training
        kill(child, run_dir, before, rng)
        assert finish(child)[0] == -signal.SIGKILL
        mid_save += any((run_dir / "checkpoints").glob(".*"))
        words = ["resume", run_dir]
    assert mid_save > 0
    code, out, err = finish(start(words, environment))
    assert (code, err) == (0, "")
    assert "Going on after step" in out
    assert fingerprints(run_dir) == fingerprints(tmp_path / "whole")
    assert fingerprints(run_dir)[0] == 1000
    assert rows(run_dir) == rows(tmp_path / "whole")
    assert not any((run_dir / "checkpoints").glob(".*"))
