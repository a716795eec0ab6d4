"""Faults that no other file has: folders, numbers and callbacks that fail, memory that runs out.

    python -m pytest tests/test_faults.py

`docs/reliability.md` says which test holds which promise. The oracle is the run that nothing
disturbed, or the same outer step without the broken tasks.
"""

import ast
import contextlib
import dataclasses
import functools
import os
import pathlib
import shutil
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maml_jax as mj
import problems
from maml_jax import checkpoints, cli, training
from training_runs import (
    SAMPLER,
    at_step,
    bits,
    fresh,
    quick_compilation,  # noqa: F401
    resumed,
    rows,
    train,
)

LEVELS = {
    "static": "mean",
    "loss": mj.aggregation.tilted(0.5),
    "norms": mj.aggregation.norm_clipped(),
    "gram": mj.aggregation.upgrad(),
    "full": mj.aggregation.trimmed_mean(1),
}
BROKEN = 3
NUM_TASKS = 5


# F5: folders.


@contextlib.contextmanager
def without_rights():
    """Runs the block as a user whom the mode of a file can stop; root it cannot."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_folder_without_the_right_to_write_fails_before_the_first_step(tmp_path):
    """The sampler would fail on its first call: it is not called."""
    # pytest makes these for this user alone; parallel workers have one more.
    for folder in (tmp_path, *(f for f in tmp_path.parents if "pytest-of-" in str(f))):
        folder.chmod(folder.stat().st_mode | 0o055)
    run_dir = tmp_path / "run"
    run_dir.mkdir(mode=0o555)
    message = r"Cannot write to .*run/checkpoints: \d+ bytes needed, \d+ bytes free: .*Permission"
    progress = fresh()
    with without_rights(), pytest.raises(checkpoints.CheckpointWriteError, match=message):
        train(run_dir, progress, sampler=None)


def test_checkpoints_that_vanish_are_written_anew(tmp_path):
    """Somebody tidies up in the middle of a run: it ends as if nobody had."""
    whole = train(tmp_path / "whole")
    saved = tmp_path / "run" / "checkpoints"
    progress = train(tmp_path / "run", report=at_step(9, lambda: shutil.rmtree(saved)))
    assert bits(progress) == bits(whole)
    assert checkpoints.steps(saved) == [9, 12, 14][-2:]


def test_a_run_whose_folder_vanishes_stops_and_names_it(tmp_path):
    """When the next line of the log is due; a checkpoint that is due before makes it anew."""
    run_dir = tmp_path / "run"
    with pytest.raises(FileNotFoundError, match=r"run/metrics\.jsonl"):
        train(run_dir, report=at_step(3, lambda: shutil.rmtree(run_dir)))
    assert not run_dir.exists()


# F10 to F12: numbers.


def spoiled(kind):
    """A meta-batch of which one task is broken, and the clean one."""
    clean = problems.linear_tasks(num_tasks=NUM_TASKS)
    huge = float(np.sqrt(np.finfo(clean.support.inputs.dtype).max))
    support, query = clean.support, clean.query
    if kind == "nan input":
        support = dataclasses.replace(support, inputs=support.inputs.at[BROKEN, 1].set(jnp.nan))
    elif kind == "inf target":
        query = dataclasses.replace(query, targets=query.targets.at[BROKEN, 0].set(jnp.inf))
    else:  # Finite data, with which two inner steps run away.
        support = dataclasses.replace(support, inputs=support.inputs.at[BROKEN].multiply(huge))
    return clean, mj.Task(support=support, query=query)


@pytest.mark.parametrize("level", LEVELS)
def test_one_broken_task_leaves_the_update_of_the_others(level, tolerance):
    """Whatever breaks it, for a rule of each level; oracle: the clean tasks, that one masked."""
    outer = mj.make_outer_step(
        problems.linear_loss,
        mj.maml(optax.sgd(0.1), 2),
        optax.adam(1e-2),
        aggregation=LEVELS[level],
        on_nonfinite="skip",
    )
    state = outer.init(jnp.asarray(problems.flat(problems.params())))
    others = jnp.arange(NUM_TASKS) != BROKEN
    for kind in ("nan input", "inf target", "inner loop runs away"):
        clean, broken = spoiled(kind)
        want, facts = outer.update(state, clean, mask=others)
        got, metrics = outer.update(state, broken, mask=jnp.ones(NUM_TASKS, bool))
        assert (int(metrics["n_valid"]), int(metrics["n_nonfinite"])) == (NUM_TASKS - 1, 1), kind
        assert int(facts["n_nonfinite"]) == 0
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=100 * tolerance, err_msg=kind)
        assert np.abs(got.params - state.params).max() > 1e-3


def low_precision_loss(dtype, params, examples):
    outputs = examples.inputs.astype(dtype) @ params.astype(dtype)[:, None]
    return jnp.mean(jnp.square(outputs)).astype(params.dtype)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_an_overflow_changes_no_bit_of_the_state(dtype):
    """All tasks overflow in a low precision, though no datum is inf; then one step is sound."""
    loss_fn = functools.partial(low_precision_loss, dtype)
    inner = mj.maml(optax.sgd(0.1), 1)
    large = float(jnp.finfo(dtype).max) / 4

    def tasks(scale):
        examples = mj.Examples(
            inputs=jnp.full((2, 3, 4), scale, jnp.float32), targets=jnp.zeros((2, 3))
        )
        return mj.Task(support=examples, query=examples)

    skipping = mj.make_outer_step(loss_fn, inner, optax.adam(1e-2), on_nonfinite="skip")
    state = skipping.init(jnp.ones(4, jnp.float32))
    state, _ = skipping.update(state, tasks(0.5))
    after, metrics = skipping.update(state, tasks(large))
    assert (int(metrics["n_valid"]), int(metrics["n_nonfinite"])) == (0, 2)
    raising = mj.make_outer_step(loss_fn, inner, optax.adam(1e-2))
    with pytest.raises(mj.NonFiniteTaskError, match=r"task \[0, 1\]") as raised:
        raising.update(state, tasks(large))
    for kept in (after, raised.value.state):
        assert bits((kept.params, kept.opt_state)) == bits((state.params, state.opt_state))
    going_on, _ = skipping.update(after, tasks(0.5))
    undisturbed, _ = skipping.update(state, tasks(0.5))
    assert bits(going_on.params) == bits(undisturbed.params)
    assert bits(going_on.params) != bits(state.params)


def test_a_sum_that_overflows_though_no_task_does_is_explained():
    """Gradients of 1, and weights whose sum is more than a float can hold."""
    outer = mj.make_outer_step(
        lambda params, examples: jnp.mean(examples.targets @ params),
        mj.maml(optax.sgd(0.1), 1),
        optax.sgd(1.0),
        aggregation=mj.aggregation.weighted(normalize="none"),
    )
    state = outer.init(jnp.ones(1))
    examples = mj.Examples(inputs=jnp.ones((4, 1, 1)), targets=jnp.ones((4, 1, 1)))
    weights = jnp.full(4, 0.5 * jnp.finfo(state.params.dtype).max)
    tasks = mj.Task(support=examples, query=examples)
    with pytest.raises(mj.NonFiniteTaskError, match="only the sum over tasks overflows; scale"):
        outer.update(state, tasks, weights=weights)


# F13: memory.


@pytest.fixture
def fails_for_memory(tmp_path, monkeypatch, capsys):
    """Runs a command that must exit with 76; returns what it said."""
    monkeypatch.setenv("MAML_JAX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(cli, "use_compilation_cache", lambda: None)

    def run(command, **flags):
        flags = {"features": 4, "meta_batch_size": 2, **flags}
        words = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
        with pytest.raises(SystemExit) as ended:
            cli.main([command, "sinusoid-10shot-finn2017", *words])
        assert ended.value.code == 76
        said = capsys.readouterr().err
        assert said.startswith("error: the device ran out of memory; ")
        assert "Out of memory allocating" in said
        return said

    return run


def test_memory_that_really_runs_out(tmp_path, fails_for_memory):
    """Petabytes are asked of the device: exit code 76, what to lower, and nothing half done."""
    run_dir = tmp_path / "run"
    said = fails_for_memory("train", query_shot=10**13, steps_per_call=1, run_dir=run_dir)
    assert "a meta-batch has 2 tasks x 1 inner" in said
    assert "lower --meta-batch-size, --query-shot" in said
    assert sorted(path.name for path in run_dir.iterdir()) == ["checkpoints", "config.json"]
    assert list((run_dir / "checkpoints").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "bench", "diagnose"])
def test_memory_runs_out_before_a_step(command, tmp_path, fails_for_memory):
    """While the network is made, and in the other commands."""
    where = {"run_dir": tmp_path / "run"} if command == "train" else {}
    where |= {"output": tmp_path / "found"} if command == "diagnose" else {}
    said = fails_for_memory(command, features=10**8, **where)
    assert "or --features" in said
    assert not list(tmp_path.glob("run/checkpoints/*"))


# F18: code of the user that fails while the device computes.


def asked_of_a_worker(key, *, worker):
    """A sinusoid task whose inputs a Python function hands out."""
    task = SAMPLER(key)
    inputs = task.query.inputs
    kind = jax.ShapeDtypeStruct(inputs.shape, inputs.dtype)
    inputs = jax.pure_callback(worker, kind, inputs, vmap_method="sequential")
    return dataclasses.replace(task, query=dataclasses.replace(task.query, inputs=inputs))


def test_a_data_worker_that_fails_stops_the_run_at_that_call(tmp_path):
    """In the third call, of 2 tasks x 3 steps; within seconds, with the worker's own traceback."""
    calls = []

    def the_data_worker(inputs):
        calls.append(1)
        if len(calls) > 14:
            raise KeyError("no such shard")
        return np.asarray(inputs)

    began = time.monotonic()
    # JAX raises one or the other, by the way it calls the program.
    errors = (jax.errors.JaxRuntimeError, ValueError)
    with pytest.raises(errors, match=r"(?s)the_data_worker.*no such shard"):
        train(tmp_path, sampler=functools.partial(asked_of_a_worker, worker=the_data_worker))
    assert time.monotonic() - began < 30.0
    assert [row["step"] for row in rows(tmp_path)] == [3, 6, 6]
    assert checkpoints.steps(tmp_path / "checkpoints") == [6]


def test_a_thread_that_draws_glyphs_and_fails_is_heard(monkeypatch):
    glyphs = sys.modules["maml_jax.data.glyphs"]

    def fails(*arguments):
        raise RuntimeError("bad curve")

    monkeypatch.setattr(glyphs, "_distort", fails)
    with pytest.raises(RuntimeError, match="bad curve"):
        glyphs.draw_glyphs(12, 1, 0, systems=("Ogham",))


# F19: logs and clocks.


@pytest.mark.parametrize("left", [0, 1, 2])
def test_a_log_that_lost_lines_does_not_stop_a_run(tmp_path, left):
    """What is left of it stays, what is made after the checkpoint is added, no step twice."""
    whole = train(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="power cut"):
        train(tmp_path / "run", report=at_step(9, functools.partial(_raise, "power cut")))
    log = tmp_path / "run" / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:left]))
    assert bits(resumed(tmp_path / "run")) == bits(whole)
    after = [row for row in rows(tmp_path / "whole") if row["step"] > 6]
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")[:left] + after


def _raise(message):
    raise RuntimeError(message)


def test_no_run_depends_on_what_the_clock_says():
    """A clock that is set back can do nothing: steps are counted, seconds are of a clock that
    only goes forward. Two modules tell the time: in the lock for people, and for old litter."""
    root = pathlib.Path(training.__file__).parent
    asking = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute)
        if (getattr(node.value, "id", getattr(node.value, "attr", "")), node.attr)
        in {("time", "time"), ("datetime", "now"), ("datetime", "today"), ("date", "today")}
    }
    assert asking == {"run_lock.py", "data/_cache.py"}


def test_a_run_that_is_taken_up_counts_on_from_the_checkpoint(tmp_path):
    """Not from the log, which may be ahead: its later lines are made again."""
    train(tmp_path, report=at_step(14, lambda: None))
    shutil.rmtree(tmp_path / "checkpoints" / "00000014")
    assert training.resume(tmp_path, fresh(), {"inner_steps": 1}).step == 12
