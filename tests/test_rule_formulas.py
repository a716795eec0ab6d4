"""Objectives and states of the rules that look at losses, pools, noise and chance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import problems
from maml_jax import aggregation as agg
from test_aggregation import NUM_TASKS, facts, reduce, rows

LOSSES = np.array([0.3, 1.7, 0.9, 2.2, 0.1, 1.1])


def losses_of(theta):
    """Losses with gradients `rows()` at θ = 0."""
    return jnp.asarray(LOSSES) + jnp.asarray(rows()) @ theta


def gradient_of(objective):
    return np.asarray(jax.grad(lambda theta: objective(losses_of(theta)))(jnp.zeros(problems.DIM)))


def contracted(rule, **known):
    return reduce(rule, rows(), facts() | {"losses": jnp.asarray(LOSSES)} | known)


@pytest.mark.parametrize("tilt", [-3.0, 0.5, 4.0])
def test_tilted_is_the_gradient_of_the_tilted_loss(tilt, tolerance):
    """(1/t) log mean exp(t ℓ), differentiated."""

    def objective(losses):
        return (jax.nn.logsumexp(tilt * losses) - jnp.log(NUM_TASKS)) / tilt

    want = gradient_of(objective)
    got = contracted(agg.tilted(tilt))
    np.testing.assert_allclose(got, want, atol=100 * tolerance * np.abs(want).max())


@pytest.mark.parametrize("alpha", [0.1, 0.4, 0.5, 0.77, 1.0])
def test_cvar_is_the_subgradient_of_its_rockafellar_form(alpha, tolerance):
    """min over ν of ν + mean max(0, ℓ - ν) / α, whose minimiser is a loss; 1/6 if α is less."""
    share = max(alpha, 1 / NUM_TASKS)

    def objective(losses):
        level = losses[:, None]
        above = jnp.maximum(losses[None, :] - level, 0).mean(axis=1)
        return (losses + above / share).min()

    want = gradient_of(objective)
    got = contracted(agg.cvar(alpha))
    np.testing.assert_allclose(got, want, atol=1e3 * tolerance * np.abs(want).max())


def test_tasks_of_equal_loss_share_the_boundary(tolerance):
    """Half of six tasks of loss 1: each has a sixth, whatever their order."""
    got = contracted(agg.cvar(0.5), losses=jnp.ones(NUM_TASKS))
    np.testing.assert_allclose(got, rows().mean(0), atol=100 * tolerance)


def test_worst_case_descends_and_ascends(tolerance):
    """p ← Proj(p + η (M / n) ℓ̂) with the losses of a task drawn twice added up."""
    rule, ids = agg.worst_case(0.05, 4), jnp.array([0, 1, 1, 3, 0, 2])
    state = rule.init()
    for _ in range(3):
        before = np.asarray(state)
        grads, state = agg.aggregate(
            rule,
            problems.unflat_rows(jnp.asarray(rows())),
            losses=jnp.asarray(LOSSES),
            task_ids=ids,
            state=state,
        )
        coefficients = 4 * before[np.asarray(ids)] / NUM_TASKS
        want = coefficients @ rows()
        scale = np.abs(want).max()
        np.testing.assert_allclose(problems.flat(grads), want, atol=100 * tolerance * scale)
        ascent = before + 0.05 * 4 / NUM_TASKS * np.bincount(ids, LOSSES, minlength=4)
        np.testing.assert_allclose(state, projected(ascent), atol=100 * tolerance)
    assert np.argmax(state) == 1


def projected(point):
    """The nearest point of the simplex, by bisection on the threshold."""
    low, high = point.min() - 1, point.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(point - middle, 0).sum() > 1 else (low, middle)
    return np.maximum(point - low, 0)


def test_worst_case_of_one_task_ends_there():
    """With one loss above all others, p goes to it and stays a distribution."""
    rule = agg.worst_case(0.3, 3)
    state = rule.init()
    for _ in range(40):
        _, state = agg.aggregate(
            rule,
            jnp.ones((3, 1)),
            losses=jnp.array([0.1, 2.0, 0.2]),
            task_ids=jnp.arange(3),
            state=state,
        )
    np.testing.assert_allclose(state, [0, 1, 0], atol=1e-6)


def test_graddrop_keeps_a_sign_in_proportion():
    """Coordinates (3, -1): +3 / 2 with probability 3/4, -1 / 2 else; alike ones stay whole."""
    grads = jnp.stack([jnp.full(4000, 3.0), jnp.full(4000, -1.0)])
    got = np.asarray(agg.aggregate(agg.graddrop(), grads, key=jax.random.key(0)))
    assert set(np.unique(got)) == {1.5, -0.5}
    assert abs((got > 0).mean() - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 4000)
    same = agg.aggregate(agg.graddrop(), jnp.full((3, 5), -2.0), key=jax.random.key(1))
    np.testing.assert_array_equal(same, -2.0)


def test_random_weights_are_unbiased_for_the_mean():
    matrix = jnp.asarray(rows())

    def one(key):
        return agg.aggregate(agg.random_weights(), matrix, key=key)

    drawn = np.asarray(jax.vmap(one)(jax.random.split(jax.random.key(0), 4000)))
    error = drawn.std(axis=0) / np.sqrt(4000)
    assert (np.abs(drawn.mean(axis=0) - rows().mean(0)) < 4.5 * error).all()
    assert drawn.std(axis=0).min() > 0.05


def test_inverse_variance_has_the_least_variance():
    """Of tasks with one mean: against the mean and weights that leave out what differs."""
    rng = np.random.default_rng(0)
    noise = np.array([0.05, 0.1, 0.5, 1.0, 3.0, 9.0])
    between = 0.5
    scale = np.sqrt((between + noise) / 30)[:, None]
    draws = jnp.asarray(scale * rng.normal(size=(3000, NUM_TASKS, 30)))

    def variance(rule):
        one = jax.vmap(lambda g: agg.aggregate(rule, g, noise=jnp.asarray(noise)))
        return float(np.square(one(draws)).sum(axis=1).mean())

    oracle = variance(agg.inverse_variance(between=between))
    np.testing.assert_allclose(oracle, 1 / (1 / (between + noise)).sum(), rtol=0.05)
    assert variance(agg.inverse_variance()) < 1.1 * oracle  # τ² is estimated from six tasks.
    assert variance(agg.inverse_variance(between=0.0)) > 1.3 * oracle
    assert variance(agg.mean()) > 2 * oracle


def test_inverse_variance_of_exact_gradients_is_the_mean(tolerance):
    zeros = jnp.zeros(NUM_TASKS)
    got = reduce(agg.inverse_variance(between=0.0), rows(), facts() | {"noise": zeros})
    np.testing.assert_allclose(got, rows().mean(0), atol=100 * tolerance)


def test_importance_from_log_ratios_is_that_from_ratios(tolerance):
    weights = np.asarray(facts()["weights"])
    by_weights = agg.importance(normalize="count", clip=1.2)
    want = reduce(by_weights, rows(), facts())
    by_ratio = agg.importance(lambda task: task, normalize="count", clip=1.2)
    got = reduce(by_ratio, rows(), facts() | {"traits": jnp.log(jnp.asarray(weights))})
    np.testing.assert_allclose(got, want, atol=100 * tolerance)
    assert weights.max() > 1.2


def test_negative_powers_of_no_complexity_stay_finite():
    known = facts() | {"traits": jnp.asarray([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])}
    got = reduce(agg.by_complexity(len, exponent=-1.0), rows(), known)
    np.testing.assert_allclose(got, rows()[0], rtol=1e-4)


ERRORS = {
    "alpha": (lambda: agg.cvar(0.0), ValueError, r"alpha must be in \(0, 1\], got 0"),
    "ascent": (lambda: agg.worst_case(0.0, 3), ValueError, "learning_rate must be above 0"),
    "pool": (lambda: agg.worst_case(0.1, 0), ValueError, "num_tasks must be at least 1, got 0"),
    "normalize": (lambda: agg.importance(normalize="none"), ValueError, "normalize must be one"),
    "clip": (lambda: agg.importance(clip=0.0), ValueError, "clip must be above 0, got 0"),
    "between": (lambda: agg.inverse_variance(between=-1.0), ValueError, "at least 0 and finite"),
    "complexity": (lambda: agg.by_complexity("size"), ValueError, "got 'size'"),
    "exponent": (lambda: agg.by_complexity(exponent=np.nan), ValueError, "finite, got nan"),
    "scale": (
        lambda: agg.Aggregation(
            name="x", level=agg.Level.LOSS, coefficients=lambda e, s: e, scale="max"
        ),
        ValueError,
        "scale must be 'mean' or 'sum', got 'max'",
    ),
    "support losses": (
        lambda: agg.aggregate(agg.by_complexity(), jnp.ones((2, 1)), losses=jnp.ones(2)),
        ValueError,
        "needs support losses",
    ),
    "traits": (
        lambda: agg.aggregate(agg.by_complexity(len), jnp.ones((2, 1))),
        ValueError,
        "pass traits=",
    ),
    "noise": (
        lambda: agg.aggregate(agg.inverse_variance(), jnp.ones((2, 1))),
        ValueError,
        "pass noise=",
    ),
    "key": (
        lambda: agg.aggregate(agg.random_weights(), jnp.ones((2, 1))),
        TypeError,
        "draws at random: pass key=",
    ),
    "task ids": (
        lambda: agg.aggregate(agg.worst_case(0.1, 3), jnp.ones((2, 1)), losses=jnp.ones(2)),
        ValueError,
        "every task must say which it is",
    ),
}


@pytest.mark.parametrize(("call", "kind", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
