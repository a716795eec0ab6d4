"""What defines each rule on the Gram matrix, on random and on degenerate gradients.

Oracles: the optimality conditions, SciPy's NNLS in float64 on the gradients themselves, closed
forms, and loops in NumPy.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import nnls

from maml_jax import aggregation as agg

X64 = jax.config.jax_enable_x64
DTYPES = [np.float32, np.float64] if X64 else [np.float32]
EXACT = {np.float32: 2e-5, np.float64: 1e-11}
# A Gram matrix knows lengths to the root of its rounding. The factor 4 is over what was measured.
ROOT = {np.float32: 4 * 3.5e-4, np.float64: 4 * 1.5e-8}
COUNT = 8

RULES = {
    "krum": agg.krum(1, 3),
    "mgda": agg.mgda(),
    "upgrad": agg.upgrad(),
    "dual_projection": agg.dual_projection(),
    "pcgrad": agg.pcgrad(),
    "gradvac": agg.gradvac(COUNT),
    "cagrad": agg.cagrad(0.4),
    "cagrad far": agg.cagrad(0.9),
    "imtl_g": agg.imtl_g(),
    "nash_mtl": agg.nash_mtl(),
    "aligned_mtl": agg.aligned_mtl(),
    "aligned_mtl median": agg.aligned_mtl("median"),
    "aligned_mtl rmse": agg.aligned_mtl("rmse"),
    "config": agg.config(),
}
DRAWN = ("pcgrad", "gradvac")


def matrices():
    """Gradients `[8, P]`; the last in float64 only."""
    rng = np.random.default_rng(0)
    tall, wide = rng.normal(size=(COUNT, 3)), rng.normal(size=(COUNT, 40))
    half = wide[:4]
    return {
        "wide": wide,
        "aligned": wide + 0.3 * rng.normal(size=40),
        "tall": tall,
        "tall aligned": tall + np.array([[3.0, 0.0, 0.0]]),
        "uneven": 10.0 ** rng.uniform(-2, 2, size=(COUNT, 1)) * (wide + rng.normal(size=40)),
        "copies": np.concatenate([half, half]),
        "multiples": np.concatenate([half, 3 * half]),
        "opposite": np.concatenate([half, -half]),
        "opposite uneven": np.concatenate([half, -3 * half]),
        "summing to 0": wide - wide.mean(0),
        "with a zero": np.concatenate([wide[:7] + 0.5, 0 * half[:1]]),
        "one line": rng.normal(size=(COUNT, 1)) * half[:1],
        "one ray": rng.uniform(1, 2, size=(COUNT, 1)) * half[:1],
        "zero": 0 * wide,
        "tiny": 1e-12 * (wide + 0.3),
        "huge": 1e12 * (wide + 0.3),
        "beyond float32": 1e100 * (wide + 0.3),
    }


MATRICES = matrices()
CASES = [
    pytest.param(name, dtype, id=f"{name}-{dtype.__name__}")
    for name in MATRICES
    for dtype in DTYPES
    if not (name == "beyond float32" and dtype is np.float32)
]
cases = pytest.mark.parametrize(("name", "dtype"), CASES)


@functools.partial(jax.jit, static_argnums=0)
def _coefficients(rule, gram, state):
    everyone = jnp.ones(len(gram), bool)
    evidence = agg.Evidence(
        valid=everyone, gram=gram, key=jax.random.key(0), task_ids=jnp.arange(len(gram))
    )
    return rule.coefficients(evidence, state)


def apply(rule, matrix, dtype=DTYPES[-1]):
    """The rounded gradients in float64, and what the rule makes of them."""
    grads = np.asarray(matrix, dtype)
    got, _ = _coefficients(rule, jnp.asarray(grads @ grads.T), rule.init())
    assert got.dtype == dtype
    grads = grads.astype(float)
    return grads, np.asarray(got, float) @ grads


def rms(grads):
    return max(np.sqrt(np.square(grads).sum(1).mean()), 1e-300)


def units(grads):
    lengths = np.linalg.norm(grads, axis=1, keepdims=True)
    return grads / np.where(lengths > 0, lengths, 1)


def shortest_combination(grads):
    """NNLS: weights whose multiple solves min ‖Σ xᵢ gᵢ / σ‖² + (Σ xᵢ - 1)²."""
    shortest = np.linalg.norm(grads, axis=1).min()
    if shortest == 0:
        return np.zeros(grads.shape[1])
    lifted = np.concatenate([grads.T / shortest, np.ones((1, len(grads)))])
    weights = nnls(lifted, np.eye(len(lifted))[-1], maxiter=10_000)[0]
    return weights @ grads / weights.sum()


def nearest_in_dual_cone(grads, point):
    """NNLS: π(g) = g + Jᵀ λ with λ ≥ 0 least in length."""
    scale = rms(grads)
    return point + nnls(grads.T / scale, -point / scale, maxiter=10_000)[0] @ grads


@cases
@pytest.mark.parametrize("rule", RULES)
def test_degenerate_gradients_give_finite_results(rule, name, dtype):
    """No longer than the longest gradient; Nash's shares have no such bound, n does."""
    grads, got = apply(RULES[rule], MATRICES[name], dtype)
    bound = np.linalg.norm(grads, axis=1).max()
    assert np.isfinite(got).all()
    assert np.linalg.norm(got) <= (COUNT if rule in ("nash_mtl", "imtl_g") else 1.01) * bound


@cases
def test_mgda_is_the_shortest_convex_combination(name, dtype):
    """min ⟨gᵢ, g*⟩ ≥ ‖g*‖², and the shortest by NNLS."""
    grads, got = apply(agg.mgda(), MATRICES[name], dtype)
    shortest = np.linalg.norm(grads, axis=1).min()
    assert (grads @ got).min() >= got @ got - ROOT[dtype] * shortest * rms(grads)
    assert np.linalg.norm(got - shortest_combination(grads)) <= ROOT[dtype] * shortest


@cases
@pytest.mark.parametrize("rule", ["upgrad", "dual_projection"])
def test_projections_on_the_dual_cone(rule, name, dtype):
    """No conflict, and NNLS on the gradients themselves."""
    grads, got = apply(RULES[rule], MATRICES[name], dtype)
    assert (units(grads) @ got).min() >= -ROOT[dtype] * rms(grads)
    sources = grads if rule == "upgrad" else [grads.mean(0)]
    want = np.mean([nearest_in_dual_cone(grads, g) for g in sources], axis=0)
    assert np.linalg.norm(got - want) <= ROOT[dtype] * rms(grads)


def test_projections_are_exact_where_gradients_are_independent():
    for name in ("wide", "aligned", "tiny", "huge"):
        for dtype in DTYPES:
            grads, got = apply(agg.upgrad(), MATRICES[name], dtype)
            want = np.mean([nearest_in_dual_cone(grads, g) for g in grads], axis=0)
            assert np.linalg.norm(got - want) <= EXACT[dtype] * rms(grads)


@cases
@pytest.mark.parametrize("c", [0.4, 0.9])
def test_cagrad_closes_the_duality_gap(c, name, dtype):
    """No dual value F(w) = ⟨g_w, g₀⟩ + c ‖g₀‖ ‖g_w‖ is below min ⟨gᵢ, d⟩, and one is equal.

    Its weights are those of d - g₀ on the tasks that gain least, or, where the d that gain most
    are many, those of a combination of length 0.
    """
    grads, got = apply(agg.cagrad(c), MATRICES[name], dtype)
    centre, scale = grads.mean(0), rms(grads)
    radius, d = c * np.linalg.norm(centre), (1 + c) * got
    assert np.linalg.norm(d - centre) <= radius + EXACT[dtype] * scale
    gains = grads @ d
    slack = (ROOT[dtype] * np.linalg.norm(centre) + EXACT[dtype] * scale) * scale
    last = grads[gains <= gains.min() + slack]
    weights = nnls(last.T / scale, (d - centre) / scale, maxiter=10_000)[0]
    duals = [
        combined @ centre + radius * np.linalg.norm(combined)
        for combined in (
            weights @ last / max(weights.sum(), 1e-300),
            shortest_combination(grads),
        )
    ]
    assert min(duals) - gains.min() <= slack


def test_cagrad_beside_a_task_at_rest_stays_at_the_mean():
    """No d gains anything for the worst task, and g₀ is the nearest that loses nothing."""
    grads, got = apply(agg.cagrad(0.5), [[2, 0], [0, 1], [0, 0]])
    np.testing.assert_allclose(1.5 * got, grads.mean(0), rtol=EXACT[DTYPES[-1]])


def test_cagrad_between_opposite_tasks_keeps_the_third():
    """d = g₀ = g₃ / 3 already gains most for the worst: 0."""
    grads, got = apply(agg.cagrad(0.5), [[1, 0], [-1, 0], [0, 1]])
    np.testing.assert_allclose(1.5 * got, grads.mean(0), atol=ROOT[DTYPES[-1]])


independent = pytest.mark.parametrize("name", ["wide", "aligned", "uneven", "tiny", "huge"])
dtypes = pytest.mark.parametrize("dtype", DTYPES)


def weights_of(grads, got):
    """The only weights that give a combination of independent gradients."""
    lengths = np.linalg.norm(grads, axis=1)
    return np.linalg.lstsq(units(grads).T, got / rms(grads), rcond=None)[0] * rms(grads) / lengths


@independent
@dtypes
def test_imtl_g_has_equal_projections(name, dtype):
    grads, got = apply(agg.imtl_g(), MATRICES[name], dtype)
    shares = units(grads) @ got
    np.testing.assert_allclose(shares, shares.mean(), rtol=100 * EXACT[dtype])
    np.testing.assert_allclose(weights_of(grads, got).sum(), 1, rtol=100 * EXACT[dtype])


@independent
@dtypes
def test_config_has_equal_cosines(name, dtype):
    """And the mean of the projections as its length."""
    grads, got = apply(agg.config(), MATRICES[name], dtype)
    direction = got / np.linalg.norm(got)
    cosines = units(grads) @ direction
    np.testing.assert_allclose(cosines, cosines.mean(), rtol=100 * EXACT[dtype])
    length = (grads @ direction).mean()
    np.testing.assert_allclose(np.linalg.norm(got), length, rtol=100 * EXACT[dtype])


@independent
@dtypes
def test_nash_mtl_solves_the_bargain(name, dtype):
    """Ĝ c ∘ c = 1 and c > 0."""
    grads, got = apply(agg.nash_mtl(), MATRICES[name], dtype)
    weights = weights_of(grads, COUNT * got)
    scaled = grads / rms(grads)
    gram = scaled @ scaled.T
    assert (weights > 0).all()
    products = weights * (gram @ weights) / np.linalg.norm(gram)
    np.testing.assert_allclose(products, 1, rtol=100 * EXACT[dtype])


@pytest.mark.parametrize("name", ["copies", "multiples", "one ray"])
def test_equal_shares_of_dependent_gradients(name):
    """Where equal projections exist, dependence does not matter."""
    for rule in (agg.imtl_g(), agg.config()):
        grads, got = apply(rule, MATRICES[name])
        shares = units(grads) @ got
        np.testing.assert_allclose(shares, shares.mean(), rtol=1e-4 if not X64 else 1e-9)
        assert shares.mean() > 0.1


@dtypes
@pytest.mark.parametrize("name", ["opposite", "opposite uneven", "tall"])
def test_rules_of_no_agreement_give_none(name, dtype):
    """ConFIG and IMTL-G of opposite gradients, Nash where no bargain exists: 0."""
    for rule in ("nash_mtl",) if name == "tall" else ("config", "imtl_g", "nash_mtl"):
        grads, got = apply(RULES[rule], MATRICES[name], dtype)
        assert np.linalg.norm(got) <= 4 * ROOT[dtype] * rms(grads)


def test_imtl_g_gives_0_where_its_weights_sum_to_0():
    """Lengths 1, 1 and 2/3, cosines 1/2 and twice 17/20: x = (30, 30, -40)/11 exactly."""
    cosines = np.array([[1, 0.5, 0.85], [0.5, 1, 0.85], [0.85, 0.85, 1]])
    units = np.linalg.cholesky(cosines)
    _, got = apply(agg.imtl_g(), np.array([[1], [1], [2 / 3]]) * units)
    np.testing.assert_array_equal(got, 0)
    _, got = apply(agg.imtl_g(), np.array([[1], [1], [0.7]]) * units)
    assert np.linalg.norm(got) > 1


@pytest.mark.parametrize("by", ["min", "median", "rmse"])
@pytest.mark.parametrize("name", ["wide", "copies", "tall", "uneven"])
def test_aligned_mtl_by_singular_values(name, by):
    """g = λ Vᵀ U 1/n for J = U S Vᵀ without the singular values of 0: condition number 1."""
    grads, got = apply(agg.aligned_mtl(by), MATRICES[name])
    if name == "uneven" and not X64:
        return  # Squared lengths of eight decades are not told from rounding in float32.
    left, singular, right = np.linalg.svd(grads, full_matrices=False)
    kept = singular > 1e-6 * singular[0]
    left, singular, right = left[:, kept], singular[kept], right[kept]
    ordered = np.sort(singular)
    root = {
        "min": ordered[0],
        "median": ordered[(len(ordered) - 1) // 2],
        "rmse": np.sqrt(np.square(ordered).mean()),
    }[by]
    want = root * left.mean(0) @ right
    np.testing.assert_allclose(got, want, atol=(1e-4 if not X64 else 1e-9) * np.abs(want).max())
