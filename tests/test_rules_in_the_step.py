"""Rules in the compiled outer step: their draws, what they hold, what they refuse."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maml_jax as mj
import problems
from test_aggregation import NUM_TASKS

pytestmark = pytest.mark.slow

INNER = mj.maml(optax.sgd(0.1), 1)
TASKS = dataclasses.replace(
    problems.linear_tasks(num_tasks=NUM_TASKS, query=6), task_id=jnp.arange(NUM_TASKS)[::-1]
)


def test_a_rule_that_draws_draws_anew_at_each_step_and_alike_in_each_run():
    outer = mj.make_outer_step(
        problems.linear_loss, INNER, optax.sgd(0.0), aggregation=mj.aggregation.random_weights()
    )
    state, runs = outer.init(problems.params()), []
    for _ in range(2):
        now, tracks = state, []
        for _ in range(3):
            tracks.append(problems.flat(outer.gradient(now, TASKS)[0]))
            now, _ = outer.update(now, TASKS)
        runs.append(np.array(tracks))
    np.testing.assert_array_equal(runs[0], runs[1])
    assert np.abs(np.diff(runs[0], axis=0)).max() > 1e-3


def test_rules_below_the_norms_hold_no_gradient_of_each_task():
    """The compiled step has no array with the task axis in front of a parameter's."""
    tasks = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * 2), TASKS)  # 12 is no other size.
    shapes = {(12, *shape) for shape in problems.SHAPES.values() if len(shape) > 1}

    def holds_gradients(rule, gain=None):
        outer = mj.make_outer_step(
            problems.linear_loss, INNER, optax.sgd(0.1), aggregation=rule, task_axis=2, gain=gain
        )
        state = outer.init(problems.params())
        jaxpr = jax.make_jaxpr(lambda s, t: outer.update(s, t))(state, tasks)
        return bool(shapes & set(_result_shapes(jaxpr.jaxpr)))

    for rule in (mj.aggregation.mean(), mj.aggregation.power(0.5), mj.aggregation.by_size()):
        assert not holds_gradients(rule)
        assert not holds_gradients(rule, mj.gains.linear())
    assert holds_gradients(mj.aggregation.normalized())
    assert holds_gradients(mj.aggregation.mean(), mj.gains.adascale())


def _result_shapes(jaxpr):
    for equation in jaxpr.eqns:
        for var in equation.outvars:
            yield getattr(var.aval, "shape", ())
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from _result_shapes(inner)


def pool(count):
    return mj.make_outer_step(
        problems.linear_loss,
        INNER,
        optax.sgd(0.1),
        aggregation=mj.aggregation.worst_case(0.1, count),
    )


ERRORS = {
    "no task id": (
        lambda: pool(9).update(
            pool(9).init(problems.params()), dataclasses.replace(TASKS, task_id=None)
        ),
        "keeps one state for each of 9 tasks: every task must say which it is",
    ),
    "task id out of range": (
        lambda: pool(3).update(pool(3).init(problems.params()), TASKS),
        r"task ids must lie in \[0, 3\), got 5",
    ),
    "task id shape": (
        lambda: pool(9).update(
            pool(9).init(problems.params()), dataclasses.replace(TASKS, task_id=jnp.zeros(2, int))
        ),
        r"task_id must be integers \[T\] = \(6,\), got int\d\d of shape \(2,\)",
    ),
}


@pytest.mark.parametrize(("call", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
