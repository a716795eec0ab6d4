"""The meta-batch over simulated devices gives what one device gives."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

import maml_jax as mj
import problems
from children import finish, start
from maml_jax import devices
from maml_jax.benchmarking import exchanges

RULES = {
    "mean": "mean",
    "weighted": "weighted",
    "tilted": mj.aggregation.tilted(0.5),
    "norm_clipped": mj.aggregation.norm_clipped(),
    "geometric_median": mj.aggregation.geometric_median(),
    "trimmed_mean": mj.aggregation.trimmed_mean(1),
}
MASK = jnp.array([True, False, False, False, True, True, True, False])  # 1 and 3 of each half.


def mesh(count):
    if len(jax.devices()) < count:
        pytest.skip(f"needs {count} devices, has {len(jax.devices())}")
    return Mesh(np.array(jax.devices()[:count]), ("tasks",))


@functools.cache
def outer_step(rule, count, axis="scan", on_nonfinite="raise"):
    """Momentum in the inner loop: its state starts as zeros that are the same everywhere."""
    return mj.make_outer_step(
        problems.linear_loss,
        mj.maml(optax.sgd(0.1, momentum=0.5), 2),
        optax.sgd(1.0),
        aggregation=RULES[rule],
        task_axis=axis,
        mesh=mesh(count) if count else None,
        on_nonfinite=on_nonfinite,
    )


def gradient(outer, num_tasks=8, **options):
    state = outer.init(jnp.asarray(problems.flat(problems.params())))
    grads, metrics = outer.gradient(state, problems.linear_tasks(num_tasks=num_tasks), **options)
    return np.asarray(grads), metrics


@pytest.mark.parametrize("axis", ["scan", "vmap", 3])
@pytest.mark.parametrize("rule", RULES)
def test_devices_share_the_tasks(rule, axis, tolerance):
    weights = {"weights": jnp.arange(1.0, 9.0)} if rule == "weighted" else {}
    want, facts = gradient(outer_step(rule, 0), mask=MASK, **weights)
    got, metrics = gradient(outer_step(rule, 2, axis), mask=MASK, **weights)
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())
    assert int(metrics["n_valid"]) == 4
    assert int(metrics["side_by_side"]) == {"scan": 1, "vmap": 4, 3: 3}[axis]
    assert int(facts.pop("side_by_side")) == 1
    for name, value in facts.items():
        np.testing.assert_allclose(metrics[name], value, rtol=10 * tolerance, err_msg=name)


@pytest.mark.parametrize("count", [1, 4])
def test_any_number_of_devices(count, tolerance):
    want, _ = gradient(outer_step("mean", 0))
    got, _ = gradient(outer_step("mean", count))
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())


def test_a_task_that_is_not_finite_is_skipped_wherever_it_is(tolerance):
    tasks = problems.linear_tasks(num_tasks=8)
    inputs = tasks.query.inputs.at[5].set(jnp.nan)
    broken = mj.Task(
        support=tasks.support, query=mj.Examples(inputs=inputs, targets=tasks.query.targets)
    )
    want, _ = gradient(outer_step("mean", 0), mask=jnp.arange(8) != 5)
    outer = outer_step("mean", 2, on_nonfinite="skip")
    got, metrics = outer.gradient(outer.init(jnp.asarray(problems.flat(problems.params()))), broken)
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())
    assert int(metrics["n_nonfinite"]) == 1

    outer = outer_step("mean", 2)
    with pytest.raises(mj.NonFiniteTaskError, match="5"):
        outer.update(outer.init(jnp.asarray(problems.flat(problems.params()))), broken)


def test_sampled_tasks_do_not_depend_on_the_devices(tolerance):
    sampler = mj.data.sinusoid(shot=3, query_shot=4)
    ends = []
    for count in (0, 2):
        outer = mj.make_outer_step(
            mj.losses.regression(problems.apply_network),
            mj.maml(optax.sgd(0.01), 1),
            optax.adam(1e-3),
            mesh=mesh(count) if count else None,
        )
        state = outer.init(problems.network())
        ends.append(mj.run_outer_steps(outer, sampler, state, 0, num_steps=3, meta_batch_size=4))
    problems.assert_trees_close(ends[1][0].params, ends[0][0].params, 1000 * tolerance)
    np.testing.assert_allclose(ends[1][1]["query_loss"], ends[0][1]["query_loss"], rtol=1e-5)


def test_one_sum_over_devices_of_the_size_of_the_parameters():
    """Read out of the compiled program: with it come the losses before and after adaptation."""
    outer = outer_step("mean", 2)
    state = outer.init(jnp.zeros(problems.DIM))
    tasks = problems.linear_tasks(num_tasks=8)
    text = jax.jit(outer.update).lower(state, tasks).compile().as_text()
    found = [(exchange.kind, exchange.elements) for exchange in exchanges(text)]
    assert found == [("all-reduce", problems.DIM + 2 * 8)]


def test_task_mesh_of_some_of_the_devices_asks_nothing_of_their_places(monkeypatch):
    """A TPU's topology has no box of 3 chips, and `jax.make_mesh` insists on one."""
    if len(jax.devices()) != 4:
        pytest.skip(f"for 4 devices, has {len(jax.devices())}")

    def no_box(*arguments, **options):
        raise AssertionError("3 chips are no box")

    monkeypatch.setattr(jax, "make_mesh", no_box)
    assert devices.task_mesh(3).size == 3


def test_explicit_axes_are_refused():
    """`jax.make_mesh` makes them by default."""
    explicit = jax.make_mesh((2,), ("tasks",), axis_types=(jax.sharding.AxisType.Explicit,))
    inner, words = mj.maml(optax.sgd(0.1), 1), r"mesh must have Auto axes, got \(.*Explicit"
    with pytest.raises(ValueError, match=words):
        mj.make_outer_step(problems.linear_loss, inner, optax.sgd(1.0), mesh=explicit)
    sampler = mj.data.sinusoid()
    with pytest.raises(ValueError, match=words):
        mj.evaluate(problems.linear_loss, inner, 0.0, sampler, 0, num_tasks=4, mesh=explicit)


def test_a_number_of_cpu_devices_that_flags_ask_for_stays():
    code = (
        "from maml_jax.devices import jax, use_cpu_cores as use; use(); print(len(jax.devices()))"
    )
    variables = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=3"}
    variables.pop("JAX_NUM_CPU_DEVICES", None)
    assert finish(start([], variables, code)) == (0, "3\n", "")


def test_task_mesh_takes_as_few_devices_as_end_soonest():
    available = len(jax.devices())
    if available != 4:
        pytest.skip(f"for 4 devices, has {available}")
    sizes = {n: (mesh := devices.task_mesh(n)) and mesh.size for n in (1, 2, 3, 5, 6, 7, 8, 25)}
    assert sizes == {1: None, 2: 2, 3: 3, 5: 3, 6: 3, 7: 4, 8: 4, 25: 4}
    assert devices.task_mesh(25, at_most=2).size == 2
    assert devices.task_mesh(25, at_most=1) is None


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (2, TypeError, "mesh must be a jax.sharding.Mesh or None, got int"),
        (
            Mesh(np.array(jax.devices()[:1]), ("batch",)),
            ValueError,
            r"mesh must have an axis \"tasks\".*got the axes \('batch',\)",
        ),
    ],
)
def test_what_is_no_mesh_of_tasks(bad, error, message):
    with pytest.raises(error, match=message):
        mj.make_outer_step(
            problems.linear_loss, mj.maml(optax.sgd(0.1), 1), optax.sgd(1.0), mesh=bad
        )
