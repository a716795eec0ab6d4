"""Devices share tasks that they do not divide: stand-ins keep them busy, and nothing shows them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maml_jax as mj
import problems
from maml_jax import devices
from maml_jax.benchmarking import exchanges
from test_devices import RULES, gradient, mesh, outer_step

# Tasks and devices: one stand-in; two; a device without a task; a task each, and one without.
UNEVEN = [(7, 2), (10, 4), (6, 4), (3, 4)]


@pytest.mark.parametrize(
    ("num_tasks", "count", "axis"),
    [(7, 2, "scan"), (10, 4, "vmap"), (7, 2, 3), (6, 4, "vmap"), (3, 4, "scan")],
)
@pytest.mark.parametrize("rule", RULES)
def test_devices_share_any_number_of_tasks(rule, axis, num_tasks, count, tolerance):
    options = {"mask": jnp.arange(num_tasks) != 1}
    if rule == "weighted":
        options["weights"] = jnp.arange(1.0, num_tasks + 1)
    want, facts = gradient(outer_step(rule, 0), num_tasks, **options)
    got, metrics = gradient(outer_step(rule, count, axis), num_tasks, **options)
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())
    assert int(metrics["n_valid"]) == num_tasks - 1
    facts.pop("side_by_side")
    for name, value in facts.items():
        np.testing.assert_allclose(metrics[name], value, rtol=10 * tolerance, err_msg=name)


@pytest.mark.parametrize(("num_tasks", "count"), UNEVEN)
def test_what_stands_in_for_tasks_is_as_finite_as_they_are(num_tasks, count, tolerance):
    """The loss divides by the inputs' norm: of zeros, its gradient is NaN."""

    def loss_fn(params, examples):
        scaled = examples.inputs / jnp.linalg.norm(examples.inputs)
        return jnp.mean((scaled @ params - examples.targets) ** 2)

    def grads(mesh):
        inner = mj.maml(optax.sgd(0.1), 1)
        outer = mj.make_outer_step(loss_fn, inner, optax.sgd(1.0), mesh=mesh)
        return gradient(outer, num_tasks)[0]

    want = grads(None)
    assert np.isfinite(want).all()
    got = grads(mesh(count))
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())


@pytest.mark.parametrize(("num_tasks", "count"), [*UNEVEN, (8, 2)])
def test_random_keys_may_be_data(num_tasks, count, tolerance):
    """With a task masked too, whose key then stays while its numbers go."""

    def loss_fn(params, examples):
        noise = jax.vmap(lambda key: jax.random.normal(key, params.shape))(examples.inputs["key"])
        return problems.linear_loss(
            params, dataclasses.replace(examples, inputs=examples.inputs["x"] + 0.1 * noise)
        )

    def with_keys(examples, seed):
        keys = jax.random.split(jax.random.key(seed), examples.targets.shape)
        return dataclasses.replace(examples, inputs={"x": examples.inputs, "key": keys})

    params = jnp.asarray(problems.flat(problems.params()))

    def grads(mesh):
        tasks = problems.linear_tasks(num_tasks=num_tasks)
        tasks = mj.Task(support=with_keys(tasks.support, 0), query=with_keys(tasks.query, 1))
        outer = mj.make_outer_step(loss_fn, mj.maml(optax.sgd(0.1), 1), optax.sgd(1.0), mesh=mesh)
        return outer.gradient(outer.init(params), tasks, mask=jnp.arange(num_tasks) != 1)[0]

    want, got = grads(None), grads(mesh(count))
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())


@pytest.mark.parametrize("rule", ["mean", "tilted", "norm_clipped", "geometric_median"])
def test_parameters_split_over_an_axis_of_their_own(rule, tolerance):
    if len(jax.devices()) < 4:
        pytest.skip(f"needs 4 devices, has {len(jax.devices())}")
    both = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("tasks", "model"))
    inner, optimizer = mj.maml(optax.sgd(0.1, momentum=0.5), 2), optax.sgd(1.0)
    outer = mj.make_outer_step(
        problems.linear_loss, inner, optimizer, aggregation=RULES[rule], mesh=both
    )
    want, got = gradient(outer_step(rule, 0), 5)[0], gradient(outer, 5)[0]
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())


def test_a_task_that_is_not_finite_is_skipped_with_its_stand_ins(tolerance):
    """Of 10 tasks over 4 devices the last is alone on its device, and is copied twice."""
    tasks = problems.linear_tasks(num_tasks=10)
    inputs = tasks.query.inputs.at[9].set(jnp.nan)
    query = dataclasses.replace(tasks.query, inputs=inputs)
    broken = dataclasses.replace(tasks, query=query)
    want, _ = gradient(outer_step("mean", 0), 10, mask=jnp.arange(10) != 9)
    outer = outer_step("mean", 4, on_nonfinite="skip")
    state = outer.init(jnp.asarray(problems.flat(problems.params())))
    got, metrics = outer.gradient(state, broken)
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())
    assert int(metrics["n_nonfinite"]) == 1
    assert int(metrics["n_valid"]) == 9


@pytest.mark.parametrize(("num_tasks", "count"), UNEVEN)
def test_sampled_tasks_do_not_depend_on_the_devices(num_tasks, count, tolerance):
    def run(mesh):
        outer = mj.make_outer_step(
            mj.losses.regression(problems.apply_network),
            mj.maml(optax.sgd(0.01), 1),
            optax.adam(1e-3),
            mesh=mesh,
        )
        state, sampler = outer.init(problems.network()), mj.data.sinusoid(shot=3, query_shot=4)
        return mj.run_outer_steps(outer, sampler, state, 0, num_steps=3, meta_batch_size=num_tasks)

    (want, facts), (got, metrics) = run(None), run(mesh(count))
    problems.assert_trees_close(got.params, want.params, 1000 * tolerance)
    np.testing.assert_allclose(metrics["query_loss"], facts["query_loss"], rtol=1e-5)


@pytest.mark.parametrize("count", [2, 4])
def test_evaluation_shares_any_number_of_tasks(count, tolerance):
    arguments = (
        mj.losses.regression(problems.apply_network),
        mj.maml(optax.sgd(0.01), 1),
        problems.network(),
        mj.data.sinusoid(shot=3, query_shot=4),
    )
    want = mj.evaluate(*arguments, key=0, num_tasks=3)
    got = mj.evaluate(*arguments, key=0, num_tasks=3, mesh=mesh(count))
    assert got.num_tasks == 3
    np.testing.assert_allclose(got.means["loss"], want.means["loss"], rtol=100 * tolerance)
    np.testing.assert_allclose(
        got.half_widths["loss"], want.half_widths["loss"], rtol=1e4 * tolerance
    )


@pytest.mark.parametrize(("num_tasks", "count", "sent"), [(7, 2, 0), (10, 4, 0), (6, 4, 15)])
def test_what_stand_ins_cost(num_tasks, count, sent):
    """Nothing; or one task, of 3 + 4 points, and its number, for devices that have none.

    Read out of the compiled program of steps that draw their tasks.
    """
    outer = mj.make_outer_step(
        mj.losses.regression(problems.apply_network),
        mj.maml(optax.sgd(0.01), 1),
        optax.sgd(1e-3),
        mesh=mesh(count),
    )
    state, sampler = outer.init(problems.network()), mj.data.sinusoid(shot=3, query_shot=4)

    def steps(state, key):
        return mj.run_outer_steps(
            outer, sampler, state, key, num_steps=2, meta_batch_size=num_tasks
        )

    text = jax.jit(steps).lower(state, jax.random.key(0)).compile().as_text()
    found = exchanges(text)
    assert {exchange.kind for exchange in found} == {"all-reduce"}
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    losses = 2 * count * devices.tasks_per_device(num_tasks, mesh(count))
    assert sum(exchange.elements for exchange in found) == size + losses + sent
