"""Inner loops against closed forms, finite differences, and each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maml_jax as mj
import problems
from maml_jax.inner_loop import task_loss

RATE = 0.1


def meta_gradients(inner, loss_fn, params, tasks):
    """Per-task meta-gradients `[T, ...]` of an inner loop."""
    one = functools.partial(task_loss, inner, loss_fn)
    grad = jax.vmap(jax.grad(lambda p, t: one(p, t)[0]), in_axes=(None, 0))
    return jax.jit(grad)(inner.init(params), tasks)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("num_steps", [0, 1, 5, 20])
def test_meta_gradient_equals_closed_form(num_steps, first_order, masked, tolerance):
    """Oracle: matrix powers in NumPy, see problems.closed_form; NaN lies in the padding."""
    params, tasks = problems.params(), problems.linear_tasks(masked=masked)
    inner = mj.maml(optax.sgd(RATE), num_steps, first_order=first_order)
    got = meta_gradients(inner, problems.masked_linear_loss, params, tasks)
    want, _ = problems.closed_form(
        problems.flat(params), tasks, RATE, num_steps, first_order=first_order
    )
    np.testing.assert_allclose(
        problems.flat_rows(got), want, rtol=0, atol=100 * tolerance * np.abs(want).max()
    )


@pytest.mark.parametrize("num_steps", [1, 7])
def test_adapted_parameters_and_losses(num_steps, tolerance):
    """θ_K of the closed form; the losses are those seen before each step."""
    params, tasks = problems.params(), problems.linear_tasks(num_tasks=1)
    support = jax.tree.map(lambda leaf: leaf[0], tasks.support)
    inner = mj.maml(optax.sgd(RATE), num_steps)
    adapted, losses = inner.adapt(problems.linear_loss, inner.init(params), support)
    _, want = problems.closed_form(problems.flat(params), tasks, RATE, num_steps)
    np.testing.assert_allclose(problems.flat(adapted), want[0], rtol=100 * tolerance)
    assert losses.shape == (num_steps,)
    np.testing.assert_allclose(
        losses[0], problems.linear_loss(params, support), rtol=100 * tolerance
    )
    assert float(losses[-1]) < float(losses[0]) or num_steps == 1


def regression_task(seed=3, support=6, query=8):
    rng = np.random.default_rng(seed)

    def examples(count):
        inputs = jnp.asarray(rng.uniform(-3, 3, size=(count, 1)))
        return mj.Examples(inputs=inputs, targets=jnp.sin(inputs))

    return mj.Task(support=examples(support), query=examples(query))


LOSS = mj.losses.regression(problems.apply_network)

INNER_LOOPS = {
    "maml": mj.maml(optax.sgd(RATE), 3),
    "maml momentum": mj.maml(optax.sgd(RATE, momentum=0.9, nesterov=True), 3),
    "maml adam": mj.maml(optax.adam(0.05, eps_root=1e-8), 3),
    "maml long": mj.maml(optax.sgd(RATE), 8),
    "anil": mj.anil(optax.sgd(RATE), 3),
    "boil": mj.boil(optax.sgd(RATE), 3),
    "meta_sgd": mj.meta_sgd(3, learning_rate=RATE),
    "lslr": mj.lslr(3, learning_rate=RATE),
}


@pytest.mark.parametrize("name", INNER_LOOPS)
def test_meta_gradient_equals_finite_differences(name):
    """Oracle: central differences of the query loss after adaptation, along random lines."""
    if not jax.config.jax_enable_x64:
        pytest.skip("finite differences need 64 bits")
    inner, task = INNER_LOOPS[name], regression_task()
    meta_params = inner.init(problems.network())

    def loss(meta_params):
        return task_loss(inner, LOSS, meta_params, task)[0]

    loss_and_grad = jax.jit(jax.value_and_grad(loss))
    _, grads = loss_and_grad(meta_params)
    rng = np.random.default_rng(0)
    step = 1e-5
    for _ in range(3):
        line = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), meta_params)
        ends = [
            loss_and_grad(jax.tree.map(lambda p, d, s=sign: p + s * step * d, meta_params, line))
            for sign in (1, -1)
        ]
        slope = (float(ends[0][0]) - float(ends[1][0])) / (2 * step)
        along = sum(
            float(jnp.vdot(g, d))
            for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(line), strict=True)
        )
        assert along == pytest.approx(slope, rel=1e-6, abs=1e-9)


OPTIONS = {
    "mixed": {"differentiate": "mixed"},
    "remat": {"remat": True},
    "mixed remat": {"differentiate": "mixed", "remat": True},
}


LOOPS = {
    "maml": functools.partial(mj.maml, optax.sgd(RATE)),
    "maml with adam": functools.partial(mj.maml, optax.adam(0.05, eps_root=1e-8)),
    "anil": functools.partial(mj.anil, optax.sgd(RATE)),
    "boil": functools.partial(mj.boil, optax.sgd(RATE)),
    "meta_sgd": functools.partial(mj.meta_sgd, learning_rate=RATE),
    "lslr": functools.partial(mj.lslr, learning_rate=RATE),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("build", LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize("num_steps", [2, 7])
def test_modes_of_differentiation_agree(build, options, num_steps, tolerance):
    """Reverse mode is the oracle; parameters that do not adapt and inputs get gradients too."""
    task = regression_task()
    grads = []
    for kwargs in ({}, options):
        inner = build(num_steps=num_steps, **kwargs)

        def loss(meta_params, support, inner=inner):
            return task_loss(inner, LOSS, meta_params, mj.Task(support=support, query=task.query))

        grad = jax.grad(loss, argnums=(0, 1), has_aux=True, allow_int=True)
        grads.append(jax.jit(grad)(inner.init(problems.network()), task.support)[0])
    problems.assert_trees_close(grads[1], grads[0], tolerance)


def test_first_order_differs_from_second_order_where_it_should():
    """They agree for no inner step, and differ for one on a curved loss."""
    params, tasks = problems.params(), problems.linear_tasks(num_tasks=2)
    for num_steps, differ in ((0, False), (1, True)):
        second = meta_gradients(
            mj.maml(optax.sgd(RATE), num_steps), problems.linear_loss, params, tasks
        )
        first = meta_gradients(
            mj.fomaml(optax.sgd(RATE), num_steps), problems.linear_loss, params, tasks
        )
        gap = np.abs(problems.flat_rows(second) - problems.flat_rows(first)).max()
        assert (gap > 1e-2) == differ


def test_anil_adapts_the_head_only_and_boil_all_else():
    task, params = regression_task(), problems.network()
    moved = {}
    for name, build in (("anil", mj.anil), ("boil", mj.boil)):
        inner = build(optax.sgd(RATE), 2)
        adapted, _ = inner.adapt(LOSS, inner.init(params), task.support)
        moved[name] = {
            part: bool(jnp.any(adapted[part]["kernel"] != params[part]["kernel"]))
            for part in ("body", "head")
        }
    assert moved == {
        "anil": {"body": False, "head": True},
        "boil": {"body": True, "head": False},
    }


def shared_products(num_steps):
    """Counts the products of mapped tasks that have no axis of tasks in both factors."""
    tasks = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), regression_task().support)
    inner, params = mj.maml(optax.sgd(RATE), num_steps), problems.network()
    adapt = jax.vmap(lambda support: inner.adapt(LOSS, params, support))
    program = str(jax.make_jaxpr(adapt)(tasks))
    return program.count("dot_general[") - program.count("([0], [0]))")


def test_first_step_multiplies_by_the_parameters_all_tasks_share():
    """One product per layer for all tasks; the next step's parameters differ."""
    assert shared_products(1) > 0
    assert shared_products(2) == shared_products(1)


def test_adapts_that_chooses_nothing_names_the_paths():
    inner = mj.anil(optax.sgd(RATE), 1, head="classifier")
    with pytest.raises(ValueError, match=r"adapts must choose .* got none of \['body/bias'"):
        inner.adapt(LOSS, problems.network(), regression_task().support)


def test_learned_rates_start_as_plain_sgd(tolerance):
    """With all rates equal, Meta-SGD and LSLR adapt as MAML with SGD does."""
    task, params = regression_task(), problems.network()
    want, _ = mj.maml(optax.sgd(RATE), 3).adapt(LOSS, params, task.support)
    for build in (mj.meta_sgd, mj.lslr):
        inner = build(3, learning_rate=RATE)
        got, _ = inner.adapt(LOSS, inner.init(params), task.support)
        problems.assert_trees_close(got, want, 100 * tolerance)


def test_learned_rates_apply_where_and_when_they_should():
    """A rate of 0 for one array, or at one step, leaves that array or step unchanged."""
    task, params = regression_task(), problems.network()
    inner = mj.meta_sgd(2, learning_rate=RATE)
    meta_params = inner.init(params)
    meta_params["learning_rates"]["head"]["bias"] = jnp.zeros(1)
    adapted, _ = inner.adapt(LOSS, meta_params, task.support)
    assert bool(jnp.all(adapted["head"]["bias"] == params["head"]["bias"]))
    assert bool(jnp.any(adapted["body"]["bias"] != params["body"]["bias"]))

    inner = mj.lslr(2, learning_rate=RATE)
    meta_params = inner.init(params)
    rates = jax.tree.map(lambda r: jnp.array([RATE, 0.0]), meta_params["learning_rates"])
    adapted, _ = inner.adapt(LOSS, {"params": params, "learning_rates": rates}, task.support)
    once, _ = mj.maml(optax.sgd(RATE), 1).adapt(LOSS, params, task.support)
    problems.assert_trees_close(adapted, once, 1e-6)


def test_reptile_gradient_is_the_way_back_from_the_adapted_parameters(tolerance):
    """θ - θ_K of the closed form, whatever the query set; the value is the query loss."""
    params, tasks = problems.params(), problems.linear_tasks()
    inner = mj.reptile(optax.sgd(RATE), 4)
    got = meta_gradients(inner, problems.linear_loss, params, tasks)
    theta = problems.flat(params)
    _, adapted = problems.closed_form(theta, tasks, RATE, 4)
    np.testing.assert_allclose(
        problems.flat_rows(got), theta[None] - adapted, rtol=0, atol=100 * tolerance
    )
    task = jax.tree.map(lambda leaf: leaf[0], tasks)
    value, _ = task_loss(inner, problems.linear_loss, params, task)
    want = problems.linear_loss(problems.unflat(adapted[0]), task.query)
    np.testing.assert_allclose(value, want, rtol=100 * tolerance)


@pytest.mark.parametrize("name", ["maml", "anil", "lslr", "maml long"])
def test_observe_sees_every_step(name, tolerance):
    """Step k of a long trajectory is the result of adapting for k steps."""
    inner, task = INNER_LOOPS[name], regression_task()
    meta_params = inner.init(problems.network())
    seen = inner.observe(LOSS, meta_params, task.support, lambda params: params)
    adapted, losses = inner.adapt(LOSS, meta_params, task.support)
    last = jax.tree.map(lambda leaf: leaf[-1], seen)
    problems.assert_trees_close(last, adapted, 10 * tolerance)
    first = jax.tree.map(lambda leaf: leaf[0], seen)
    problems.assert_trees_close(first, problems.network(), 0.0)
    for step, loss in enumerate(losses):
        at_step = jax.tree.map(lambda leaf, k=step: leaf[k], seen)
        np.testing.assert_allclose(LOSS(at_step, task.support), loss, rtol=100 * tolerance)


def test_observe_goes_beyond_the_trained_steps(tolerance):
    """More steps than LSLR has rates for use the last rate."""
    task, params = regression_task(), problems.network()
    inner = mj.lslr(2, learning_rate=RATE)
    seen = inner.observe(LOSS, inner.init(params), task.support, lambda p: p, num_steps=6)
    want, _ = mj.maml(optax.sgd(RATE), 6).adapt(LOSS, params, task.support)
    last = jax.tree.map(lambda leaf: leaf[-1], seen)
    problems.assert_trees_close(last, want, 100 * tolerance)


def test_fully_masked_support_is_no_adaptation():
    """The loss of an empty set is undefined, but its gradient is 0: zero-shot."""
    task, params = regression_task(), problems.network()
    support = mj.Examples(
        inputs=task.support.inputs, targets=task.support.targets, mask=jnp.zeros(6, bool)
    )
    adapted, losses = mj.maml(optax.sgd(RATE), 2).adapt(LOSS, params, support)
    problems.assert_trees_close(adapted, params, 0.0)
    assert bool(jnp.isnan(losses).all())
