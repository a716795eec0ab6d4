"""`maml-jax` in real processes: one core, one small run, one folder of compiled programs.

On several cores XLA on a CPU may round otherwise from call to call
(https://github.com/jax-ml/jax/issues/39741), so a test of bits pins one.
"""

import itertools
import os
import subprocess
import sys
import time

import pytest

from maml_jax import checkpoints
from maml_jax.metrics_log import read_metrics

PATIENCE = 120.0
"""Seconds after which a child that does not get on is given up; it should need five."""

_MAIN = """
import os
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from maml_jax import cli, runs
runs.draw_all = lambda *arguments, **options: []  # Pictures take longer than the rest.
cli.main()
"""

_FLAGS = {
    "--features": 4,
    "--meta-batch-size": 2,
    "--test-query-shot": 8,
    "--test-inner-steps": 1,
    "--validation-tasks": 2,
    "--test-tasks": 2,
    "--steps-per-call": 10,
}
SMALL = ["train", "sinusoid-10shot-finn2017", *itertools.chain(*_FLAGS.items())]


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """Variables of all children: a short run spends most of its time compiling."""
    folder = tmp_path_factory.mktemp("children")
    return {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "MAML_JAX_CACHE_DIR": str(folder / "cache"),
    }


def start(words, environment, code=_MAIN):
    """Starts `maml-jax WORDS`; a warning is an error, but for what JAX's writer does to a reader.

    It does not write compiled programs in one step: where several children share them, one can
    meet the half of a file, and compiles anew.
    """
    half = "ignore:Error reading persistent compilation cache entry:UserWarning"
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-W", half, "-c", code, *map(str, words)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(child):
    """Waits for the end; returns exit code, standard output and standard error."""
    try:
        out, err = child.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        child.kill()
        pytest.fail(f"a child took over {PATIENCE} s: {child.communicate()}")
    return child.returncode, out, err


def wait_until(condition, child):
    """Polls every 2 ms; fails if the child ends or `PATIENCE` does."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if child.poll() is not None:
            pytest.fail(f"the child ended too early: {finish(child)}")
        if time.monotonic() > end:
            child.kill()
            pytest.fail(f"the child did not get on: {finish(child)}")
        time.sleep(0.002)


def last_logged_step(run_dir):
    """The last step in the log, or 0."""
    return max((row["step"] for row in read_metrics(run_dir / "metrics.jsonl")), default=0)


def fingerprints(run_dir):
    """The step and the SHA-256 of each leaf of the newest checkpoint: best, last, optimizer."""
    saved = run_dir / "checkpoints"
    manifest = checkpoints.verify(saved / f"{max(checkpoints.steps(saved)):08d}")
    return manifest["step"], {leaf["path"]: leaf["sha256"] for leaf in manifest["leaves"]}


def rows(run_dir):
    """The log without the clock."""
    logged = read_metrics(run_dir / "metrics.jsonl")
    return [{name: row[name] for name in row if name != "seconds"} for row in logged]
