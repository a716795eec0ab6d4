"""The noise of each gradient from two halves of its query set."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maml_jax as mj
import problems
from maml_jax import Examples, Task
from maml_jax.layout import Layout
from maml_jax.query_halves import noisy_task_gradients
from maml_jax.task_axis import task_gradients


def loss_of(theta, task):
    """½ mean (θ - y)² over the unmasked query examples: gradient θ - mean y."""
    query, count = task.query, None
    errors = 0.5 * jnp.square(theta - query.targets)
    if query.mask is not None:
        count = query.mask.sum()
        return jnp.where(query.mask, errors, 0).sum() / count, {}
    return errors.mean(), {}


def tasks_with(targets, mask=None):
    targets = jnp.asarray(targets)
    query = Examples(inputs=targets[..., None], targets=targets, mask=mask)
    support = Examples(inputs=targets[:, :1, None], targets=targets[:, :1])
    return Task(support=support, query=query)


def measure(tasks, valid=None):
    valid = jnp.ones(len(tasks.query.targets), bool) if valid is None else valid
    layout = Layout(side_by_side=3)
    return noisy_task_gradients(loss_of, jnp.array(0.5), tasks, layout, valid=valid)


def test_gradient_and_loss_are_those_of_the_whole_set(tolerance):
    """Halves of 3 and 2 unmasked examples, whose averages are weighted by these numbers."""
    rng = np.random.default_rng(0)
    mask = jnp.asarray(np.tile([True, True, True, True, True, False], (5, 1)))
    tasks = tasks_with(rng.normal(size=(5, 6)), mask)
    losses, _, grads, _ = measure(tasks)
    want = task_gradients(loss_of, jnp.array(0.5), tasks, Layout(side_by_side=5))
    np.testing.assert_allclose(losses, want[0], rtol=100 * tolerance)
    np.testing.assert_allclose(grads, want[2], rtol=100 * tolerance, atol=tolerance)


@pytest.mark.parametrize("masked", [False, True])
def test_noise_is_unbiased(masked):
    """Targets of variance 4: the gradient over n examples has variance 4 / n."""
    rng = np.random.default_rng(1)
    targets = 2 * rng.normal(size=(6000, 6))
    mask = None
    count = 6
    if masked:
        mask, count = jnp.asarray(np.tile([True] * 4 + [True, False], (6000, 1))), 5
    noise = np.asarray(measure(tasks_with(targets, mask))[3])
    error = noise.std() / np.sqrt(len(noise))
    assert abs(noise.mean() - 4 / count) < 3.5 * error
    assert error < 0.02 * 4 / count * 2


def test_one_example_shows_no_noise_and_gets_the_average_per_example():
    targets = np.array([[0.0, 2.0, 0.0, 2.0], [1.0, 9.0, 9.0, 9.0]])
    mask = jnp.asarray([[True] * 4, [True, False, False, False]])
    losses, _, grads, noise = measure(tasks_with(targets, mask))
    # Halves of means 0 and 2: 4 · 2 · 2 / 16 = 1 for four examples, so 4 for one.
    np.testing.assert_allclose(noise, [1.0, 4.0], rtol=1e-6)
    np.testing.assert_allclose(grads, [0.5 - 1.0, 0.5 - 1.0], rtol=1e-6)
    assert np.isfinite(losses).all()


def test_tasks_that_do_not_count_show_nothing():
    targets = np.array([[0.0, 2.0, 0.0, 2.0], [np.nan] * 4, [1.0, 9.0, 9.0, 9.0]])
    mask = jnp.asarray([[True] * 4, [True] * 4, [True, False, False, False]])
    noise = measure(tasks_with(targets, mask), jnp.array([True, False, True]))[3]
    np.testing.assert_allclose(np.asarray(noise)[[0, 2]], [1.0, 4.0], rtol=1e-6)


@pytest.mark.slow
def test_an_outer_step_weighs_tasks_by_their_noise(tolerance):
    """Against `aggregate` with noise and gradients by hand, in chunks and on two devices."""
    tasks = problems.linear_tasks(num_tasks=4, query=6)
    rule = mj.aggregation.inverse_variance()
    inner = mj.maml(optax.sgd(0.1), 1)
    params = problems.params()

    def grads_of(query):
        part = dataclasses.replace(tasks, query=query)
        one = mj.make_outer_step(problems.linear_loss, inner, optax.sgd(0.1))
        rows = []
        for i in range(4):
            task = jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], part)
            rows.append(problems.flat(one.gradient(one.init(params), task)[0]))
        return np.array(rows)

    def half(start):
        return jax.tree.map(lambda leaf: leaf[:, start::2], tasks.query)

    first, second = grads_of(half(0)), grads_of(half(1))
    noise = np.square(first - second).sum(1) / 4
    grads = problems.unflat_rows((first + second) / 2)
    want = problems.flat(mj.aggregation.aggregate(rule, grads, noise=jnp.asarray(noise)))
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("tasks",))
    for options in ({"task_axis": 3}, {"mesh": mesh}):
        outer = mj.make_outer_step(
            problems.linear_loss, inner, optax.sgd(0.1), aggregation=rule, **options
        )
        got = problems.flat(outer.gradient(outer.init(params), tasks)[0])
        np.testing.assert_allclose(got, want, rtol=0, atol=1e3 * tolerance * np.abs(want).max())


def test_an_odd_number_of_query_examples_is_refused():
    with pytest.raises(ValueError, match="even number of examples per task, got 5"):
        measure(tasks_with(np.zeros((2, 5))))
