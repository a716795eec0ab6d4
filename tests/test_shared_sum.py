"""The sum of shared parameters and each task's updates: oracle is the plain sum."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maml_jax as mj
import problems
from maml_jax import shared_sum

PARAMS = {"w": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), "b": jnp.ones(3)}
INPUTS = jnp.linspace(0.1, 2.0, 24).reshape(4, 2, 3)


def loss(apply_updates, params, inputs):
    """Moves parameters by an update of the task's own, and measures them, not linearly."""
    update = jax.tree.map(lambda p: -0.1 * jnp.sin(p * inputs.sum()), params)
    moved = apply_updates(params, update)
    return jnp.sum(jnp.tanh(moved["w"] * inputs) ** 2) + jnp.sum(moved["b"] ** 3)


def total(apply_updates, mapped, params):
    one = functools.partial(loss, apply_updates, params)
    return {"vmap": jax.vmap(one), "scan": functools.partial(jax.lax.map, one)}[mapped](
        INPUTS
    ).sum()


DERIVATIVES = {
    "value": lambda f: f(PARAMS),
    "grad": lambda f: jax.grad(f)(PARAMS),
    "jvp": lambda f: jax.jvp(f, (PARAMS,), (PARAMS,)),
    "jvp of grad": lambda f: jax.jvp(jax.grad(f), (PARAMS,), (PARAMS,))[1],
    "grad of grad": lambda f: jax.grad(lambda p: optax.tree.norm(jax.grad(f)(p)))(PARAMS),
    "hessian": lambda f: jax.hessian(f)(PARAMS),
    "grad of jvp": lambda f: jax.grad(lambda p: jax.jvp(f, (p,), (PARAMS,))[1])(PARAMS),
}


@pytest.mark.parametrize("mapped", ["vmap", "scan"])
@pytest.mark.parametrize("name", DERIVATIVES)
def test_every_derivative_is_that_of_the_plain_sum(name, mapped, tolerance):
    got, want = (
        jax.jit(lambda f: DERIVATIVES[name](f), static_argnums=0)(
            functools.partial(total, apply_updates, mapped)
        )
        for apply_updates in (shared_sum.apply_updates, optax.apply_updates)
    )
    problems.assert_trees_close(got, want, tolerance)


def test_each_task_has_its_own_gradient(tolerance):
    got, want = (
        jax.vmap(jax.grad(functools.partial(loss, apply_updates)), in_axes=(None, 0))(
            PARAMS, INPUTS
        )
        for apply_updates in (shared_sum.apply_updates, optax.apply_updates)
    )
    problems.assert_trees_close(got, want, tolerance)


@pytest.mark.parametrize("axes", [(None, 0), (0, None), (1, 2), (2, 0)])
def test_any_axis_may_be_mapped(axes, tolerance):
    """Twice over: a map in a map repeats what is repeated already."""
    key = jax.random.key(0)
    shapes = [(2, 3), (2, 3)]
    for i, axis in enumerate(axes):
        if axis is not None:
            shapes[i] = (*shapes[i][:axis], 4, *shapes[i][axis:])
    arrays = [jax.random.normal(jax.random.fold_in(key, i), s) for i, s in enumerate(shapes)]
    many = jax.random.normal(key, (5, *shapes[1]))

    def gradient(apply_updates):
        def f(param, update):
            sums = jax.vmap(apply_updates, axes)(param, update)
            return jnp.sum(jnp.sin(sums) * jnp.arange(sums.size).reshape(sums.shape))

        def over_many(param, updates):
            return jax.vmap(f, (None, 0))(param, updates).sum()

        return jax.grad(f, (0, 1))(*arrays), jax.grad(over_many, (0, 1))(arrays[0], many)

    got, want = gradient(shared_sum.apply_updates), gradient(optax.apply_updates)
    problems.assert_trees_close(got, want, 10 * tolerance)


def test_dtypes_and_missing_leaves_are_those_of_optax():
    params = {"half": jnp.ones(2, jnp.bfloat16), "elsewhere": None, "numpy": np.ones(2)}
    updates = {"half": jnp.full(2, 1e-3), "elsewhere": None, "numpy": jnp.ones(2)}
    got, want = (f(params, updates) for f in (shared_sum.apply_updates, optax.apply_updates))
    assert got["elsewhere"] is None
    for name in ("half", "numpy"):
        assert got[name].dtype == want[name].dtype
        np.testing.assert_array_equal(got[name], want[name])


@pytest.mark.parametrize("num_steps", [1, 2])
def test_the_parameters_of_the_first_step_are_repeated_by_a_product(num_steps):
    inner = mj.maml(optax.sgd(0.1), num_steps=num_steps)
    outer = mj.make_outer_step(problems.linear_loss, inner, optax.sgd(0.1), task_axis="vmap")
    params = problems.params()
    program = str(jax.make_jaxpr(outer.gradient)(outer.init(params), problems.linear_tasks(3)))
    assert program.count("repeat_for_tasks[") == len(jax.tree.leaves(params))
    assert program.count("shared_sum ") == num_steps * len(jax.tree.leaves(params))
