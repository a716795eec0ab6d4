"""One outer step on 1, 2, 4 and 8 devices is that of no mesh, whatever the rule and inner loop.

The oracle is the same step without a mesh, and its oracle the rule by itself, on gradients made
one by one. Every other rule and loop runs here on 2 or on 4 devices; all of them on all counts:

    MAML_JAX_TEST_DEVICES=8 python -m pytest -m "nightly or not nightly" tests/test_device_counts.py
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maml_jax as mj
import problems
from maml_jax.inner_loop import task_loss
from test_aggregation import RULES

pytestmark = pytest.mark.slow

COUNTS = (1, 2, 4, 8)
NUM_TASKS = 8
MASK = jnp.array([True, False, True, True, False, False, True, True])  # 1 and 3 of halves, 0 to 2.
WEIGHTS = jnp.asarray(np.random.default_rng(5).uniform(0.5, 2.0, NUM_TASKS))
TASKS = dataclasses.replace(
    problems.linear_tasks(num_tasks=NUM_TASKS, query=6), task_id=jnp.arange(NUM_TASKS)[::-1]
)
SGD = optax.sgd(0.1, momentum=0.5)
AXES = ("vmap", 2, "scan")  # The rules take turns.
KEEPS_GRADIENT = optax.chain(optax.trace(decay=0.0), optax.scale(-0.1))
INNER = {
    "maml": mj.maml(SGD, 2),
    "maml looped": mj.maml(SGD, 7),
    "maml remat": mj.maml(SGD, 2, remat=True),
    "maml mixed": mj.maml(SGD, 2, differentiate="mixed"),
    "fomaml": mj.fomaml(SGD, 2),
    "anil": mj.anil(SGD, 2, head="head"),
    "boil": mj.boil(SGD, 2, head="head"),
    "meta_sgd": mj.meta_sgd(2, learning_rate=0.1),
    "lslr": mj.lslr(2, learning_rate=0.1),
    "reptile": mj.reptile(optax.sgd(0.1), 2),
}


def turns(names):
    """Of each name one count in turn for every run, the others for the night."""
    return [
        pytest.param(name, count, marks=() if count == (2, 4)[index % 2] else pytest.mark.nightly)
        for index, name in enumerate(names)
        for count in COUNTS
    ]


def mesh(count):
    if len(jax.devices()) < count:
        pytest.skip(f"needs MAML_JAX_TEST_DEVICES={count}, has {len(jax.devices())} devices")
    return jax.sharding.Mesh(np.array(jax.devices()[:count]), ("tasks",))


def problem(kind):
    """Loss, parameters and tasks."""
    if kind == "rule":
        return problems.linear_loss, problems.params(), TASKS
    return mj.losses.regression(problems.apply_network), problems.network(), sinusoids()


@functools.cache
def adapted_losses(kind, name, count):
    """The loss of each task after adaptation, by the inner loop alone."""
    loss_fn, params, tasks = problem(kind)
    outer = mj.make_outer_step(loss_fn, INNER[name], optax.sgd(0.1), **place(count))
    return jax.device_get(
        jnp.where(MASK, outer.evidence(outer.init(params), tasks, mask=MASK).losses, 0)
    )


@functools.cache
def measured(kind, name, count):
    """Per-task losses after adaptation; the state, with the gradient, and metrics of a step."""
    rule, inner, axis = mj.aggregation.mean(), INNER["maml" if kind == "rule" else name], "auto"
    if kind == "rule":
        rule, axis = rule_named(name), AXES[list(RULES).index(name) % len(AXES)]
    loss_fn, params, tasks = problem(kind)
    outer = mj.make_outer_step(
        loss_fn, inner, KEEPS_GRADIENT, aggregation=rule, task_axis=axis, **place(count)
    )
    options = {"mask": MASK} | weights_for(rule)
    moved, metrics = outer.update(outer.init(params), tasks, **options)
    metrics.pop("side_by_side")
    losses = adapted_losses(kind, "maml" if kind == "rule" else name, count)
    gradient = moved.opt_state[0].trace
    return losses, *jax.device_get((gradient, metrics, moved.aggregation_state, moved.params))


def rule_named(name):
    rule = RULES[name]
    return rule if rule.trait is None else dataclasses.replace(rule, trait=trait)


def trait(task):
    """What "own" rules ask of a task."""
    return 0.5 + task.support.targets[0] ** 2


def weights_for(rule):
    return {"weights": WEIGHTS} if rule.uses_weights else {}


def place(count):
    return {} if count is None else {"mesh": mesh(count)}


@functools.cache
def one_by_one():
    """Losses, support losses and gradients of each task, in a Python loop."""
    one = functools.partial(task_loss, INNER["maml"], problems.linear_loss)
    value_and_grad = jax.jit(jax.value_and_grad(one, has_aux=True))
    seen = []
    for i in range(NUM_TASKS):
        task = jax.tree.map(lambda leaf, i=i: leaf[i], TASKS)
        (loss, metrics), grads = value_and_grad(problems.params(), task)
        seen.append((loss, metrics["support_loss"], problems.flat(grads)))
    losses, support_losses, rows = zip(*seen, strict=True)
    return jnp.stack(losses), jnp.stack(support_losses), np.array(rows)


@functools.cache
def sinusoids():
    tasks = mj.meta_batch(mj.data.sinusoid(shot=4, query_shot=4), jax.random.key(0), NUM_TASKS)
    return jax.tree.map(lambda leaf: leaf.astype(float), tasks)


def assert_alike(got, want, tolerance):
    names = ("losses", "gradient", "metrics", "state of the rule", "parameters")
    for name, mine, theirs in zip(names, got, want, strict=True):
        for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
            scale = max(np.abs(b).max(initial=0), 1e-3)
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale, err_msg=name)


@pytest.mark.parametrize(("name", "count"), turns(RULES))
def test_every_rule(name, count, tolerance):
    tolerance = min(tolerance, 1e-5)
    assert_alike(measured("rule", name, count), measured("rule", name, None), tolerance)


@pytest.mark.parametrize("name", [n for n, rule in RULES.items() if not rule.splits_queries])
def test_the_outer_step_gives_what_the_rule_gives(name, tolerance):
    """With masked tasks; rules that keep a state keep the same."""
    rule = rule_named(name)
    losses, support_losses, rows = one_by_one()
    want, after = mj.aggregation.aggregate(
        rule,
        problems.unflat_rows(rows),
        losses=losses,
        support_losses=support_losses,
        num_support=jnp.full(NUM_TASKS, 5),
        num_query=jnp.full(NUM_TASKS, 6),
        traits=jax.vmap(trait)(TASKS),
        task_ids=TASKS.task_id,
        key=jax.random.fold_in(jax.random.key(rule.seed or 0), 0),
        mask=MASK,
        state=rule.init(),
        **weights_for(rule),
    )
    _, gradient, _, state, _ = measured("rule", name, None)
    got, want = problems.flat(gradient), problems.flat(want)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e4 * tolerance * np.abs(want).max())
    for mine, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e4 * tolerance)


@pytest.mark.parametrize(("name", "count"), turns(INNER))
def test_every_inner_loop(name, count, tolerance):
    tolerance = min(tolerance, 1e-5)
    assert_alike(measured("inner", name, count), measured("inner", name, None), tolerance)


@pytest.mark.parametrize("name", ["mean", "tilted", "norm_clipped", "upgrad", "median"])
def test_parameters_split_over_an_axis_of_their_own(name, tolerance):
    """Two devices for the tasks times two for the parameters; one rule of each level."""
    if len(jax.devices()) < 4:
        pytest.skip(f"needs 4 devices, has {len(jax.devices())}")
    both = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("tasks", "model"))
    ends = []
    for place in ({}, {"mesh": both}):
        outer = mj.make_outer_step(
            mj.losses.regression(problems.apply_network),
            INNER["meta_sgd"],
            optax.adam(0.1),
            aggregation=RULES[name],
            **place,
        )
        state = outer.init(problems.network(width=6))
        for _ in range(2):
            state, metrics = outer.update(state, sinusoids(), mask=MASK)
        ends.append((state, metrics["query_loss"]))
    kernel = ends[1][0].params["params"]["body"]["kernel"]
    moment = ends[1][0].opt_state[0].mu["params"]["head"]["kernel"]
    assert kernel.addressable_data(0).shape == (1, 3)
    assert moment.addressable_data(0).shape == (3, 1)
    for got, want in zip(jax.tree.leaves(ends[1]), jax.tree.leaves(ends[0]), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e4 * tolerance, atol=1e4 * tolerance)
