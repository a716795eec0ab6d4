"""SIGKILL at random moments: nothing is lost but time, and no bit is other than it would be.

The oracle is a run of the same command that nothing disturbed, with every checkpoint kept. Twelve
kills here, 200 by

    python experiments/reliability/kills.py
"""

import dataclasses
import random
import signal
import time
from pathlib import Path

import pytest

import children
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
from maml_jax import checkpoints, run_lock

EVERY = 20
RUN = [*SMALL, "--outer-steps", "1000", "--validate-every", "100", "--checkpoint-every", str(EVERY)]
KEEPING_ALL = """
import functools
from maml_jax import checkpoints
checkpoints.save = functools.partial(checkpoints.save, keep=10**6)
"""


@dataclasses.dataclass
class Tally:
    """What came of kills.

    Attributes:
      kills: how many.
      in_save: in how many a checkpoint was half written or half removed.
      lost: how often a checkpoint that was there before was not there, or was not sound, after.
      wrong: how often the newest one, or the end of a run, was not that of the undisturbed run.
      most_steps_again: the most outer steps that had to be made again.
    """

    kills: int = 0
    in_save: int = 0
    lost: int = 0
    wrong: int = 0
    most_steps_again: int = 0


def undisturbed(folder, environment):  # noqa: F811
    """Makes the run that nothing disturbs; returns its folder, with all its checkpoints."""
    run_dir = folder / "undisturbed"
    code = children._MAIN.replace("cli.main()", f"{KEEPING_ALL}\ncli.main()")
    ended = finish(start([*RUN, "--run-dir", run_dir], environment, code))
    assert (ended[0], ended[2]) == (0, ""), ended
    assert checkpoints.steps(run_dir / "checkpoints") == list(range(EVERY, 1001, EVERY))
    return run_dir


def inode(path: Path):
    return path.stat().st_ino if path.exists() else None


def kill_in_training(child, run_dir, before, rng):
    """Kills after a few more calls, at any moment of the next."""
    log, calls = run_dir / "metrics.jsonl", rng.randrange(1, 7)
    newest = max(checkpoints.steps(run_dir / "checkpoints"), default=0)
    # A resumed run writes the log anew without the lines after its checkpoint.
    wait_until(lambda: inode(log) not in (None, before), child)
    wait_until(lambda: last_logged_step(run_dir) >= newest + 10 * calls, child)
    time.sleep(rng.uniform(0.0, 0.03))


def kill_in_save(child, run_dir, before, rng):
    """Kills while a checkpoint is being written or an old one removed."""
    log, saved = run_dir / "metrics.jsonl", run_dir / "checkpoints"
    wait_until(lambda: inode(log) not in (None, before), child)
    wait_until(lambda: any(saved.glob(".tmp-*")), child)
    time.sleep(rng.uniform(0.0, 0.05))


def kill_at_any_time(child, run_dir, before, rng):
    """Kills while it starts, reads, compiles, trains, or evaluates."""
    time.sleep(rng.uniform(0.0, 3.0))


MOMENTS = (kill_in_save, kill_in_training, kill_in_save, kill_at_any_time)


def litter(run_dir):
    """What saves leave that were killed; each has a name of its own."""
    return set((run_dir / "checkpoints").glob(".*"))


def examine(run_dir, whole, durable, tally):
    """Counts what a kill did; `durable` is the step of a checkpoint that was there before it."""
    saved = run_dir / "checkpoints"
    step = max(checkpoints.steps(saved), default=0)
    tally.lost += step < durable
    tally.most_steps_again = max(tally.most_steps_again, last_logged_step(run_dir) - step)
    if step:
        try:
            leaves = fingerprints(run_dir)[1]
        except checkpoints.CheckpointCorruptError:
            tally.lost += 1
            return
        wanted = checkpoints.read_manifest(whole / "checkpoints" / f"{step:08d}")["leaves"]
        tally.wrong += leaves != {leaf["path"]: leaf["sha256"] for leaf in wanted}


def disturb(run_dir, whole, environment, *, kills, rng, tally):  # noqa: F811
    """Kills a run often and resumes it, then lets it end; adds to the tally."""
    words = [*RUN, "--run-dir", run_dir]
    for number in range(kills):
        before, saved = inode(run_dir / "metrics.jsonl"), run_dir / "checkpoints"
        old = litter(run_dir)
        child = start(words, environment)
        MOMENTS[number % len(MOMENTS)](child, run_dir, before, rng)
        durable = max(checkpoints.steps(saved), default=0)
        child.send_signal(signal.SIGKILL)
        code, _, err = finish(child)
        if code == 0:
            break  # It was done before the signal came.
        assert (code, err) == (-signal.SIGKILL, "")
        tally.kills += 1
        tally.in_save += not litter(run_dir) <= old
        examine(run_dir, whole, durable, tally)
        if (run_dir / "config.json").exists():
            words = ["resume", run_dir]
    code, out, err = finish(start(words, environment))
    assert (code, err) == (0, ""), (code, out, err)
    same = fingerprints(run_dir) == fingerprints(whole) and rows(run_dir) == rows(whole)
    tally.wrong += not same
    return out


@pytest.mark.slow
def test_twelve_kills_change_no_bit(tmp_path, environment):  # noqa: F811
    whole, run_dir, tally = undisturbed(tmp_path, environment), tmp_path / "killed", Tally()
    out = disturb(run_dir, whole, environment, kills=12, rng=random.Random(0), tally=tally)
    assert "Going on after step" in out
    assert "was killed and left its lock: taking over." in out
    assert tally.kills >= 10
    assert tally.in_save > 0
    assert (tally.lost, tally.wrong) == (0, 0)
    # At most the interval between checkpoints and the call that was running.
    assert 0 < tally.most_steps_again <= EVERY
    assert fingerprints(run_dir)[0] == 1000
    assert litter(run_dir) == set()
    assert not (run_dir / run_lock.FILE).exists()
