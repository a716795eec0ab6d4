"""Many steps in one call against single steps, and the independence of tasks from layout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maml_jax as mj
import problems
from maml_jax import outer_loop

SAMPLER = mj.data.sinusoid(shot=4, query_shot=5)
LOSS = mj.losses.regression(problems.apply_network)


@functools.cache
def outer_step(on_nonfinite="raise"):
    return mj.make_outer_step(
        LOSS, mj.maml(optax.sgd(0.01), 1), optax.adam(1e-2), on_nonfinite=on_nonfinite
    )


def start(outer):
    return outer.init(problems.network())


def test_one_call_makes_the_steps_that_single_updates_make(tolerance):
    """Oracle: sampling by hand with fold_in(key, step), then fold_in(·, task)."""
    outer, key = outer_step(), jax.random.key(7)
    state, metrics = mj.run_outer_steps(
        outer, SAMPLER, start(outer), key, num_steps=3, meta_batch_size=2
    )
    by_hand, losses = start(outer), []
    for step in range(3):
        step_key = jax.random.fold_in(key, step)
        tasks = [SAMPLER(jax.random.fold_in(step_key, index)) for index in range(2)]
        batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *tasks)
        by_hand, seen = outer.update(by_hand, batch)
        losses.append(float(seen["query_loss"]))
    problems.assert_trees_close(state.params, by_hand.params, 1000 * tolerance)
    np.testing.assert_allclose(metrics["query_loss"], losses, rtol=1000 * tolerance)
    assert int(state.step) == 3


def test_calls_with_one_key_go_on_where_the_last_stopped(tolerance):
    """Twice 2 steps with the same key are 4 steps; other keys give other tasks."""
    outer = outer_step()
    run = functools.partial(mj.run_outer_steps, outer, SAMPLER, meta_batch_size=2)
    whole, _ = run(start(outer), 3, num_steps=4)
    half, first = run(start(outer), 3, num_steps=2)
    both, second = run(half, 3, num_steps=2)
    problems.assert_trees_close(both.params, whole.params, 1000 * tolerance)
    assert not np.allclose(first["query_loss"], second["query_loss"])
    _, other = run(start(outer), 4, num_steps=2)
    assert not np.allclose(first["query_loss"], other["query_loss"])


@pytest.mark.parametrize("steps_at_once", [1, 2])
def test_tasks_are_the_same_however_many_are_drawn_at_once(steps_at_once, monkeypatch, tolerance):
    """Oracle: all six at once. A meta-batch is 2 tasks of 9 examples, 2 numbers each."""
    run = functools.partial(
        mj.run_outer_steps, sampler=SAMPLER, key=3, num_steps=6, meta_batch_size=2
    )
    whole, losses = run(outer_step(), state=start(outer_step()))
    meta_batch = mj.meta_batch(SAMPLER, jax.random.key(0), 2)
    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(meta_batch))
    monkeypatch.setattr(outer_loop, "_DRAWN_BYTES", steps_at_once * num_bytes)
    jax.clear_caches()
    parts, seen = run(outer_step(), state=start(outer_step()))
    jax.clear_caches()
    problems.assert_trees_close(parts.params, whole.params, 1000 * tolerance)
    np.testing.assert_allclose(seen["query_loss"], losses["query_loss"], rtol=1000 * tolerance)


def test_one_core_and_several_make_the_same_steps(monkeypatch, tolerance):
    """The outer step is asked once for each size of meta-batch, and what it says is done."""
    asked, compiled = [], []

    def answer(params, tasks):
        asked.append(jax.tree.leaves(tasks)[0].shape[0])
        return asked[-1] == 2

    def spied(name):
        scanned = getattr(outer_loop, name)

        def call(*arguments, **options):
            compiled.append((options["meta_batch_size"], name))
            return scanned(*arguments, **options)

        monkeypatch.setattr(outer_loop, name, call)

    outer = outer_step()._replace(fits_one_core=answer)
    spied("_scanned_steps")
    spied("_scanned_on_one_core")
    run = functools.partial(mj.run_outer_steps, outer, SAMPLER, start(outer), 3, num_steps=2)
    got = [run(meta_batch_size=size) for size in (2, 3, 2)]
    assert asked == [2, 3]
    assert compiled == [(2, "_scanned_on_one_core"), (3, "_scanned_steps"), *compiled[:1]]
    monkeypatch.setattr(outer_loop, "_scanned_on_one_core", outer_loop._scanned_steps)
    problems.assert_trees_close(got[0], run(meta_batch_size=2), 1000 * tolerance)


def test_a_task_does_not_depend_on_the_size_of_the_meta_batch():
    few = mj.meta_batch(SAMPLER, jax.random.key(0), 2)
    many = mj.meta_batch(SAMPLER, jax.random.key(0), 5)
    first = jax.tree.map(lambda leaf: leaf[:2], many)
    problems.assert_trees_close(few, first, 0.0)


def test_failure_inside_a_call_stops_there_and_tells_the_step():
    """A sampler whose third step holds a NaN: two steps are made, the error names step 2."""
    outer = outer_step()
    bad_key = jax.random.fold_in(jax.random.fold_in(jax.random.key(5), 2), 1)
    bad = jax.random.key_data(bad_key)

    def sampler(key):
        task = SAMPLER(key)
        spoil = jnp.where((jax.random.key_data(key) == bad).all(), jnp.nan, 0.0)
        query = mj.Examples(inputs=task.query.inputs, targets=task.query.targets + spoil)
        return mj.Task(support=task.support, query=query)

    with pytest.raises(mj.NonFiniteTaskError, match=r"step 2: .*task \[1\].*targets") as caught:
        mj.run_outer_steps(outer, sampler, start(outer), 5, num_steps=6, meta_batch_size=3)
    two, _ = mj.run_outer_steps(outer, SAMPLER, start(outer), 5, num_steps=2, meta_batch_size=3)
    assert int(caught.value.state.step) == 2
    problems.assert_trees_close(caught.value.state.params, two.params, 1e-6)


def test_divergence_is_blamed_on_the_inner_learning_rate():
    line = mj.losses.regression(lambda params, inputs, mask: inputs @ params)
    outer = mj.make_outer_step(line, mj.maml(optax.sgd(1e30), 12), optax.adam(1e-2))
    state = outer.init(jnp.ones((1, 1)))
    with pytest.raises(mj.NonFiniteTaskError, match="lower the inner learning rate"):
        mj.run_outer_steps(outer, SAMPLER, state, 0, num_steps=2, meta_batch_size=2)


def test_skip_goes_on_to_the_next_tasks():
    """A step of which no task counts still moves on to other tasks, with the same state."""
    outer = outer_step("skip")

    def broken(key):
        task = SAMPLER(key)
        query = mj.Examples(inputs=task.query.inputs, targets=task.query.targets * jnp.nan)
        return mj.Task(support=task.support, query=query)

    state, metrics = mj.run_outer_steps(
        outer, broken, start(outer), 0, num_steps=2, meta_batch_size=2
    )
    assert int(state.step) == 2
    np.testing.assert_array_equal(metrics["n_valid"], [0, 0])
    problems.assert_trees_close(state.params, problems.network(), 0.0)


def test_no_transfer_and_no_compilation_after_the_first_call():
    outer = outer_step("propagate")
    key = jax.random.key(0)
    state, _ = mj.run_outer_steps(outer, SAMPLER, start(outer), key, num_steps=2, meta_batch_size=2)
    compiled = jax.jit(
        lambda state, key: mj.run_outer_steps(
            outer, SAMPLER, state, key, num_steps=2, meta_batch_size=2
        )
    )
    state, _ = compiled(state, key)
    with jax.transfer_guard("disallow"):
        state, _ = compiled(state, key)
    assert int(state.step) == 6
    assert compiled._cache_size() == 1
