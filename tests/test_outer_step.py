"""The outer step against closed forms, an explicit loop, and its own invariances."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import maml_jax as mj
import problems
from maml_jax.inner_loop import task_loss

RATE, STEPS = 0.1, 2
INNER = mj.maml(optax.sgd(RATE), STEPS)
WEIGHTS = jnp.array([0.5, 2.0, 1.0, 3.0, 0.25])
RULES = {
    "mean": "mean",
    "sum": "sum",
    "weighted": "weighted",
    "power": mj.aggregation.power(0.5),
    "by_size": mj.aggregation.by_size("query"),
    "tilted": mj.aggregation.tilted(0.5),
    "norm_clipped": mj.aggregation.norm_clipped(),
    "geometric_median": mj.aggregation.geometric_median(),
    "trimmed_mean": mj.aggregation.trimmed_mean(1),
}
AXES = ["vmap", "scan", 2]  # Chunks of 2, 2 and 1.


def theta():
    """One array compiles faster than a tree; trees are in test_inner_loop."""
    return jnp.asarray(problems.flat(problems.params()))


def tasks(masked=False):
    return problems.linear_tasks(num_tasks=5, masked=masked)


@functools.cache
def outer_step(rule="mean", axis="vmap", on_nonfinite="raise", loss_fn=problems.linear_loss):
    return mj.make_outer_step(
        loss_fn,
        INNER,
        optax.sgd(1.0),
        aggregation=RULES[rule],
        task_axis=axis,
        on_nonfinite=on_nonfinite,
    )


def gradient(outer, meta_batch, **options):
    grads, metrics = outer.gradient(outer.init(theta()), meta_batch, **options)
    return problems.flat(grads), metrics


def given(rule):
    return {"weights": WEIGHTS} if rule == "weighted" else {}


@jax.jit
def loss_and_grad(params, task):
    one = functools.partial(task_loss, INNER, problems.linear_loss)
    return jax.value_and_grad(one, has_aux=True)(params, task)


def loop(rule, meta_batch):
    """An explicit Python loop over tasks, then the rule as a plain function."""
    results = [
        loss_and_grad(theta(), jax.tree.map(lambda leaf, i=index: leaf[i], meta_batch))
        for index in range(5)
    ]
    losses = jnp.stack([loss for (loss, _), _ in results])
    grads = jnp.stack([grads for _, grads in results])
    sizes = jnp.full(5, meta_batch.query.targets.shape[1])
    return problems.flat(
        mj.aggregation.aggregate(RULES[rule], grads, losses=losses, num_query=sizes, **given(rule))
    )


@pytest.mark.parametrize("rule", RULES)
def test_vmap_scan_chunks_and_a_python_loop_agree(rule, tolerance):
    want = loop(rule, tasks())
    for axis in AXES:
        got, _ = gradient(outer_step(rule, axis), tasks(), **given(rule))
        np.testing.assert_allclose(
            got, want, rtol=0, atol=tolerance * np.abs(want).max(), err_msg=str(axis)
        )


@pytest.mark.parametrize("rule", ["mean", "sum", "weighted", "power", "by_size"])
def test_linear_rules_equal_the_closed_form(rule, tolerance):
    """Oracle: problems.closed_form, contracted in NumPy; example masks included."""
    meta_batch = tasks(masked=True)
    per_task, _ = problems.closed_form(problems.flat(theta()), meta_batch, RATE, STEPS)
    sizes = np.asarray(meta_batch.query.mask).sum(1)
    weights = np.asarray(WEIGHTS)
    want = {
        "mean": per_task.mean(0),
        "sum": per_task.sum(0),
        "weighted": weights @ per_task / weights.sum(),
        "power": per_task.sum(0) / np.sqrt(5),
        "by_size": sizes @ per_task / sizes.sum(),
    }[rule]
    outer = outer_step(rule, "vmap", loss_fn=problems.masked_linear_loss)
    got, _ = gradient(outer, meta_batch, **given(rule))
    np.testing.assert_allclose(got, want, rtol=0, atol=100 * tolerance * np.abs(want).max())


def test_update_is_the_optimizer_on_the_gradient(tolerance):
    """With SGD of rate 1 the parameters move by minus the gradient; the caller's stay."""
    outer, params = outer_step(), theta()
    state = outer.init(params)
    grads, before = outer.gradient(state, tasks())
    new_state, metrics = outer.update(state, tasks())
    moved = problems.flat(state.params) - problems.flat(new_state.params)
    np.testing.assert_allclose(moved, problems.flat(grads), rtol=0, atol=10 * tolerance)
    assert int(new_state.step) == 1
    np.testing.assert_array_equal(problems.flat(params), problems.flat(theta()))
    for name, value in before.items():
        np.testing.assert_allclose(metrics[name], value, rtol=10 * tolerance, err_msg=name)


def test_sum_is_the_number_of_valid_tasks_times_the_mean(tolerance):
    mask = jnp.array([True, False, True, True, False])
    mean, _ = gradient(outer_step("mean"), tasks(), mask=mask)
    total, _ = gradient(outer_step("sum"), tasks(), mask=mask)
    np.testing.assert_allclose(total, 3 * mean, rtol=0, atol=10 * tolerance)


def test_equal_weights_are_the_mean(tolerance):
    mean, _ = gradient(outer_step("mean"), tasks())
    equal, _ = gradient(outer_step("weighted"), tasks(), weights=jnp.full(5, 0.3))
    np.testing.assert_allclose(equal, mean, rtol=0, atol=10 * tolerance)


@pytest.mark.parametrize(
    ("rule", "axis"),
    [
        ("weighted", "vmap"),
        ("weighted", "scan"),
        ("weighted", 2),
        ("tilted", "vmap"),
        ("geometric_median", "scan"),
    ],
)
def test_zero_weight_masked_and_absent_are_the_same(rule, axis, tolerance):
    """Even when the task that is left out holds NaN."""
    keep = np.array([0, 2, 3, 4])
    some = jax.tree.map(lambda leaf: leaf[keep], tasks())
    weights = {"weights": WEIGHTS[keep]} if rule == "weighted" else {}
    want, _ = gradient(outer_step(rule, axis), some, **weights)
    broken = spoil(tasks(), 1)
    mask = jnp.asarray(np.arange(5) != 1)
    got, metrics = gradient(outer_step(rule, axis), broken, mask=mask, **given(rule))
    bound = 20 * tolerance * np.abs(want).max()
    np.testing.assert_allclose(got, want, rtol=0, atol=bound)
    assert int(metrics["n_valid"]) == 4
    if rule == "weighted":
        zero, _ = gradient(outer_step(rule, axis), broken, weights=WEIGHTS.at[1].set(0.0))
        np.testing.assert_allclose(zero, want, rtol=0, atol=bound)


def spoil(meta_batch, index):
    """Puts NaN in the query inputs of one task."""
    query = meta_batch.query
    inputs = query.inputs.at[index, 0].set(jnp.nan)
    query = mj.Examples(inputs=inputs, targets=query.targets, mask=query.mask)
    return mj.Task(support=meta_batch.support, query=query)


@pytest.mark.parametrize("rule", ["weighted", "tilted", "norm_clipped", "trimmed_mean"])
def test_skip_gives_the_update_of_the_other_tasks(rule, tolerance):
    keep = np.array([0, 1, 2, 4])
    some = jax.tree.map(lambda leaf: leaf[keep], tasks())
    weights = {"weights": WEIGHTS[keep]} if rule == "weighted" else {}
    want, _ = gradient(outer_step(rule), some, **weights)
    outer = outer_step(rule, "scan", on_nonfinite="skip")
    got, metrics = gradient(outer, spoil(tasks(), 3), **given(rule))
    np.testing.assert_allclose(got, want, rtol=0, atol=20 * tolerance * np.abs(want).max())
    assert (int(metrics["n_valid"]), int(metrics["n_nonfinite"])) == (4, 1)
    assert bool(jnp.isfinite(metrics["query_loss"]))


def test_skip_catches_a_finite_loss_with_a_nan_gradient():
    """√|x| at 0 has a finite value and no finite slope."""

    def loss_fn(params, examples):
        return jnp.mean(jnp.sqrt(jnp.abs(params[None] - examples.targets)))

    outer = mj.make_outer_step(
        loss_fn, mj.maml(optax.sgd(RATE), 0), optax.sgd(1.0), on_nonfinite="skip"
    )
    targets = jnp.array([[[1.0]], [[0.0]], [[4.0]]])
    examples = mj.Examples(inputs=targets, targets=targets)
    _, metrics = outer.update(outer.init(jnp.zeros(1)), mj.Task(support=examples, query=examples))
    assert (int(metrics["n_valid"]), int(metrics["n_nonfinite"])) == (2, 1)


def test_raise_names_the_task_and_keeps_the_state():
    outer = outer_step("mean", "scan")
    state = outer.init(theta())
    with pytest.raises(mj.NonFiniteTaskError, match=r"task \[3\].*query.inputs hold") as caught:
        outer.update(state, spoil(tasks(), 3))
    assert caught.value.task_indices == [3]
    assert caught.value.step == 0
    new_state, metrics = jax.jit(outer.update)(state, spoil(tasks(), 3))
    assert int(metrics["n_nonfinite"]) == 1
    problems.assert_trees_close(new_state, state, 0.0)


def test_propagate_lets_nan_through():
    got, metrics = gradient(outer_step(on_nonfinite="propagate"), spoil(tasks(), 3))
    assert np.isnan(got).all()
    assert int(metrics["n_nonfinite"]) == 1


@pytest.mark.parametrize("on_nonfinite", ["raise", "skip", "propagate"])
def test_no_valid_task_leaves_parameters_and_optimizer_alone(on_nonfinite):
    outer = mj.make_outer_step(
        problems.linear_loss, INNER, optax.adam(1e-2), on_nonfinite=on_nonfinite
    )
    state = outer.init(theta())
    new_state, metrics = outer.update(state, tasks(), mask=jnp.zeros(5, bool))
    assert int(metrics["n_valid"]) == 0
    problems.assert_trees_close(new_state.params, state.params, 0.0)
    problems.assert_trees_close(new_state.opt_state, state.opt_state, 0.0)


def test_metrics_are_what_they_say(tolerance):
    """Oracle: per-task losses of the loop; norms and inner products in NumPy."""
    outer = outer_step("norm_clipped")
    _, metrics = gradient(outer, tasks())
    per_task, adapted = problems.closed_form(problems.flat(theta()), tasks(), RATE, STEPS)
    one = [jax.tree.map(lambda leaf, i=index: leaf[i], tasks()) for index in range(5)]
    losses = [
        problems.linear_loss(jnp.asarray(point), task.query)
        for point, task in zip(adapted, one, strict=True)
    ]
    starts = [problems.linear_loss(theta(), task.support) for task in one]
    products = per_task @ per_task.T
    divisor = products.sum() / np.trace(products)
    norms = np.sqrt(np.diag(products))
    clips = np.minimum(1, np.median(norms) / norms)
    want = {
        "query_loss": np.mean(losses),
        "support_loss": np.mean(starts),
        "n_valid": 5,
        "n_nonfinite": 0,
        "grad_norm": np.linalg.norm(clips @ per_task / 5),
        "effective_tasks": clips.sum() ** 2 / (clips**2).sum(),
        "divisor": divisor,
        "gain": 5 / divisor,
        "coherence": (products.sum() - np.trace(products)) / 4 / np.trace(products),
        "side_by_side": 5,
    }
    assert sorted(metrics) == sorted(want)
    for name, value in want.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e4 * tolerance, err_msg=name)


def test_tasks_are_independent(tolerance):
    """Changing one task leaves the others' gradients alone: the difference is its own."""
    changed = jax.tree.map(lambda leaf: leaf.at[2].multiply(1.7), tasks())
    total, _ = gradient(outer_step("sum"), tasks())
    other, _ = gradient(outer_step("sum"), changed)
    before, _ = problems.closed_form(theta(), tasks(), RATE, STEPS)
    after, _ = problems.closed_form(theta(), changed, RATE, STEPS)
    want = after[2] - before[2]
    np.testing.assert_allclose(
        other - total, want, rtol=0, atol=1000 * tolerance * np.abs(want).max()
    )


@pytest.mark.parametrize("num_steps", [1, 5, 7], ids=["one", "written out", "loop"])
def test_loss_is_traced_once_for_support_and_once_for_query(num_steps):
    """Neither further inner steps, nor counting bytes, nor other calls trace it again."""
    calls = []

    def loss_fn(params, examples):
        calls.append(len(examples.targets))
        return problems.linear_loss(params, examples)

    inner = mj.maml(optax.sgd(RATE), num_steps)
    outer = mj.make_outer_step(loss_fn, inner, optax.sgd(0.1), task_axis="auto")
    state = outer.init(theta())
    for seed in (5, 6):
        meta_batch = problems.linear_tasks(num_tasks=5, seed=seed)
        state, _ = outer.update(state, meta_batch)
        outer.gradient(state, meta_batch)
    sizes = [examples.targets.shape[1] for examples in (meta_batch.support, meta_batch.query)]
    assert sizes[0] != sizes[1]
    assert sorted(calls) == sorted(sizes)


def test_second_call_does_not_compile():
    """The inner loop, which unlike the loss is traced whenever the step is, is not traced again."""
    calls = []

    def adapt(*arguments):
        calls.append(1)
        return INNER.adapt(*arguments)

    inner = INNER._replace(adapt=adapt)
    outer = mj.make_outer_step(problems.linear_loss, inner, optax.sgd(0.1), task_axis="vmap")
    state = outer.init(theta())
    state, _ = outer.update(state, tasks())
    traced = len(calls)
    for seed in (5, 6):
        state, _ = outer.update(state, problems.linear_tasks(num_tasks=5, seed=seed))
    assert len(calls) == traced <= 3


def regression_tasks(num_tasks=3):
    return mj.meta_batch(mj.data.sinusoid(shot=4, query_shot=5), jax.random.key(0), num_tasks)


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, inputs):
        hidden = linen.softplus(linen.Dense(4)(inputs))
        return linen.Dense(1)(hidden)


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(1, 4, rngs=rngs)
        self.second = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, inputs):
        return self.second(jax.nn.softplus(self.first(inputs)))


def test_plain_function_linen_and_nnx_models_agree(tolerance):
    """The same weights give the same meta-gradient, whoever holds them."""
    linen_net = LinenNet()
    linen_params = linen_net.init(jax.random.key(1), jnp.zeros((1, 1)))
    linen_params = jax.tree.map(lambda leaf: leaf.astype(float), linen_params)
    layers = linen_params["params"]
    graphdef, nnx_params = nnx.split(NnxNet(nnx.Rngs(0)))
    for name, layer in (("first", "Dense_0"), ("second", "Dense_1")):
        nnx_params[name].kernel.set_value(layers[layer]["kernel"])
        nnx_params[name].bias.set_value(layers[layer]["bias"])
    plain_params = [(layers[n]["kernel"], layers[n]["bias"]) for n in ("Dense_0", "Dense_1")]

    def plain(params, inputs):
        (w1, b1), (w2, b2) = params
        return jax.nn.softplus(inputs @ w1 + b1[None]) @ w2 + b2[None]

    def nnx_apply(params, inputs):
        return nnx.merge(graphdef, params, copy=True)(inputs)

    kernels = []
    for apply, params, find in (
        (plain, plain_params, lambda g: g[0][0]),
        (linen_net.apply, linen_params, lambda g: g["params"]["Dense_0"]["kernel"]),
        (nnx_apply, nnx_params, lambda g: g["first"].kernel[...]),
    ):
        loss_fn = mj.losses.regression(lambda p, x, mask, f=apply: f(p, x))
        outer = mj.make_outer_step(loss_fn, mj.maml(optax.sgd(0.05), 2), optax.adam(1e-3))
        state = outer.init(params)
        grads, _ = outer.gradient(state, regression_tasks())
        kernels.append(np.asarray(find(grads)))
        outer.update(state, regression_tasks())
    for other in kernels[1:]:
        np.testing.assert_allclose(other, kernels[0], rtol=0, atol=100 * tolerance)


def test_opt_state_of_another_optimizer_is_refused():
    state = mj.make_outer_step(problems.linear_loss, INNER, optax.adam(1e-3)).init(theta())
    with pytest.raises(ValueError, match="opt_state must be of this outer step"):
        outer_step().update(state, tasks())


def test_state_of_an_outer_step_with_other_choices_is_refused():
    """Each part of the state that another choice of this outer step would have made."""
    state = outer_step().init(theta())

    def other(**choices):
        return mj.make_outer_step(problems.linear_loss, INNER, optax.sgd(1.0), **choices)

    with pytest.raises(ValueError, match=r"gain_state must be of this outer step.* no entry"):
        other(gain=mj.gains.adascale()).update(state, tasks())
    with pytest.raises(ValueError, match="aggregation_state must be of this outer step"):
        other(aggregation=mj.aggregation.importance(5)).update(
            state, dataclasses.replace(tasks(), task_id=jnp.arange(5))
        )


@pytest.mark.parametrize(
    "rule", ["mean", "tilted", "norm_clipped", "geometric_median", "trimmed_mean"]
)
@pytest.mark.parametrize("on_nonfinite", ["raise", "skip", "propagate"])
def test_no_task_counts_and_all_hold_nan(rule, on_nonfinite):
    """One rule of each level: the state stays as it is, the gradient is 0, nothing is blamed."""
    outer = outer_step(rule, on_nonfinite=on_nonfinite)
    state, nothing = outer.init(theta()), jnp.zeros(5, bool)
    spoilt = functools.reduce(spoil, range(5), tasks())
    grads, metrics = outer.gradient(state, spoilt, mask=nothing)
    assert (int(metrics["n_valid"]), int(metrics["n_nonfinite"])) == (0, 0)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(grads))
    moved, _ = outer.update(state, spoilt, mask=nothing)
    for got, want in zip(*map(jax.tree.leaves, (moved.params, state.params)), strict=True):
        np.testing.assert_array_equal(got, want)


def test_only_tasks_that_count_are_blamed():
    """By mask or by weight: the padding of task 1 is its own affair."""
    spoilt = spoil(spoil(tasks(), 1), 3)
    counts = jnp.arange(5) != 1
    with pytest.raises(mj.NonFiniteTaskError, match=r"task \[3\] of"):
        outer_step().update(outer_step().init(theta()), spoilt, mask=counts)
    outer = outer_step("weighted")
    with pytest.raises(mj.NonFiniteTaskError, match=r"task \[3\] of"):
        outer.gradient(outer.init(theta()), spoilt, weights=counts.astype(float))


@pytest.mark.parametrize("rule", ["sum", "trimmed_mean"])
def test_half_precision_overflows_in_no_norm_and_in_no_update(rule):
    """Gradients of 290 in float16, whose square overflows; the sum of 300 of them does too."""

    def loss_fn(params, examples):
        return (examples.inputs * params).mean()

    def outcome(num_tasks):
        inputs = jnp.full((num_tasks, 2, 1), 290, jnp.float16)
        examples = mj.Examples(inputs=inputs, targets=jnp.zeros((num_tasks, 2), jnp.float16))
        outer = mj.make_outer_step(
            loss_fn,
            mj.maml(optax.sgd(0.0), 0),
            optax.sgd(1e-3),
            aggregation=RULES[rule],
            on_nonfinite="skip",
        )
        state = outer.init(jnp.zeros((), jnp.float16))
        state, metrics = outer.update(state, mj.Task(support=examples, query=examples))
        return float(state.params), {name: float(value) for name, value in metrics.items()}

    moved, metrics = outcome(3)
    factor = 3 if rule == "sum" else 1
    np.testing.assert_allclose(moved, -0.29 * factor, rtol=1e-2)
    np.testing.assert_allclose(metrics["grad_norm"], 290 * factor, rtol=1e-3)
    assert metrics["n_nonfinite"] == 0
    moved, metrics = outcome(300)
    if rule == "sum":
        assert (moved, metrics["n_nonfinite"], metrics["n_valid"]) == (0, 1, 300)
    else:
        assert moved < 0


def test_exports_for_cpu_cuda_and_tpu():
    """The compiled step lowers for every accelerator, with nothing but CPU at hand."""
    outer = outer_step("mean", "vmap")
    state = outer.init(theta())
    exported = jax.export.export(jax.jit(outer.update), platforms=("cpu", "cuda", "tpu"))(
        state, tasks()
    )
    assert exported.platforms == ("cpu", "cuda", "tpu")
