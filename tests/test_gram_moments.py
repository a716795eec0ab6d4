"""Estimates from inner products: unbiased on clustered Gaussians, refused where they must be."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from maml_jax import gram_moments
from maml_jax.estimates import Look, estimate, norm_spread
from maml_jax.gram_moments import Moments
from maml_jax.spread import spread_of

DIM, SIGNAL, SHARED, OWN = 6, 2.5, 1.5, 3.0  # ‖μ‖², τ_b, τ_e; ρ = 1/3.
GROUPS = np.repeat([0, 1, 2], 4)
RHO = SHARED / (SHARED + OWN)


def meta_batches(num_draws, seed=0):
    """Gradients `[draws, 24, DIM]` of two meta-batches of three groups of four tasks."""
    rng = np.random.default_rng(seed)
    mean = np.sqrt(SIGNAL / DIM) * np.ones(DIM)
    shared = rng.normal(size=(num_draws, 6, DIM)) * np.sqrt(SHARED / DIM)
    own = rng.normal(size=(num_draws, 24, DIM)) * np.sqrt(OWN / DIM)
    return mean + np.repeat(shared, 4, axis=1) + own


BATCHES = np.repeat([0, 1], 12)


def test_moments_are_unbiased():
    """Within 2% over 4,000 draws, each of the variances and the signal, labelled or not."""
    grads = meta_batches(4000)
    grams = grads @ grads.swapaxes(1, 2)
    groups = np.tile(GROUPS, 2)
    found = [gram_moments.moments(g, batches=BATCHES, groups=groups) for g in grams]
    both = Moments(
        **{
            name: np.mean([getattr(m, name) for m in found])
            for name in ("square", "within", "group", "across")
        }
    )
    share = 3 / 11  # Of the pairs of a meta-batch that are of one group.
    truth = {
        "signal": SIGNAL,
        "variance": SHARED + OWN,
        "square": SIGNAL + SHARED + OWN,
        "correlation": share * RHO,
        "group_correlation": RHO,
    }
    for name, want in truth.items():
        np.testing.assert_allclose(getattr(both, name), want, rtol=0.02)
    np.testing.assert_allclose(both.group - both.across, SHARED, rtol=0.02)
    np.testing.assert_allclose(both.square - both.group, OWN, rtol=0.02)
    # Kish: the mean of 12 such tasks has the variance of 12 / (1 + 3 ρ) = 6 independent ones.
    averages = grads[:, :12].mean(1)
    variance = averages.var(axis=0, ddof=1).sum()
    np.testing.assert_allclose(both.effective_tasks(12), (SHARED + OWN) / variance, rtol=0.04)
    np.testing.assert_allclose(both.effective_tasks(12), 6.0, rtol=0.02)
    # The gain is E ‖g‖² / E ‖mean g‖².
    want = np.square(grads[:, :12]).sum(2).mean() / np.square(averages).sum(1).mean()
    np.testing.assert_allclose(both.gain(12), want, rtol=0.01)


def test_groups_of_one_meta_batch_identify_the_correlation():
    grads = meta_batches(4000, seed=1)[:, :12]
    found = [gram_moments.moments(g @ g.T, groups=GROUPS) for g in grads]
    above = np.mean([m.group - m.across for m in found])
    below = np.mean([m.square - m.across for m in found])
    np.testing.assert_allclose(above / below, RHO, rtol=0.03)


def test_one_unlabelled_meta_batch_does_not_identify_it():
    """Shared noise looks like signal: the estimate is refused, coherence is not."""
    gram = np.cov(meta_batches(1)[0][:12])
    with pytest.raises(ValueError, match="needs two independent meta-batches"):
        gram_moments.intraclass_correlation(gram)
    with pytest.raises(ValueError, match="or two labelled groups"):
        gram_moments.intraclass_correlation(gram, groups=np.zeros(12, int))
    found = gram_moments.moments(gram)
    assert np.isnan(found.correlation)
    assert np.isfinite(found.coherence)


def test_correlation_without_labels_is_that_of_a_meta_batch():
    grads = meta_batches(3000, seed=2)
    gram = np.mean([g @ g.T for g in grads], axis=0)
    got = gram_moments.intraclass_correlation(gram, batches=BATCHES)
    np.testing.assert_allclose(got, 3 / 11 * RHO, rtol=0.03)


def test_tasks_that_do_not_count_are_left_out():
    gram = np.array([[2.0, 1.0, 9.0], [1.0, 4.0, 9.0], [9.0, 9.0, 99.0]])
    found = gram_moments.moments(gram, valid=np.array([True, True, False]))
    assert (found.square, found.within) == (3.0, 1.0)


def test_spread_and_moments_agree(tolerance):
    """Of one meta-batch: gain, divisor and coherence from gradients and from products."""
    grads = meta_batches(1)[0][:12]
    found = gram_moments.moments(grads @ grads.T)
    spread = spread_of(jnp.asarray(grads), jnp.ones(12, bool))
    np.testing.assert_allclose(spread.coherence, found.coherence, rtol=1e3 * tolerance)
    np.testing.assert_allclose(spread.signal, found.within, rtol=1e3 * tolerance)
    np.testing.assert_allclose(spread.divisor, 1 + 11 * found.coherence, rtol=1e3 * tolerance)


def test_identical_orthogonal_and_no_gradients():
    same = gram_moments.moments(np.ones((4, 4)), batches=np.array([0, 0, 1, 1]))
    assert (same.gain(8), same.noise_scale) == (1.0, 0.0)
    apart = gram_moments.moments(np.eye(4), batches=np.array([0, 0, 1, 1]))
    assert (apart.gain(8), apart.noise_scale) == (8.0, np.inf)
    none = gram_moments.moments(np.zeros((4, 4)), batches=np.array([0, 0, 1, 1]))
    assert none.gain(8) == 1.0


def test_cosines_of_a_zero_gradient_are_zero():
    got = gram_moments.cosines(np.array([[4.0, 2.0, 0.0], [2.0, 4.0, 0.0], [0.0, 0.0, 0.0]]))
    np.testing.assert_allclose(got, [[1, 0.5, 0], [0.5, 1, 0], [0, 0, 0]])


def looks(num_looks, seed=0):
    return [
        Look(
            gram=g @ g.T,
            batches=BATCHES,
            groups=np.tile(GROUPS, 2),
            own_noise=0.9 if i == 0 else np.nan,
            num_broken=0,
        )
        for i, g in enumerate(meta_batches(num_looks, seed))
    ]


def test_intervals_cover_the_truth():
    """Of 100 diagnoses of 8 looks, about 95 intervals should; at least 85 do."""
    truth = {"group_correlation": RHO, "correlation": 3 / 11 * RHO, "coherence": None}
    truth["coherence"] = (SIGNAL + 3 / 11 * SHARED) / (SIGNAL + SHARED + OWN)
    covered = dict.fromkeys(truth, 0)
    for seed in range(100):
        found = estimate(looks(8, seed), 12)
        for name, want in truth.items():
            value, half = found[name]
            covered[name] += abs(value - want) <= half
    assert all(85 <= count <= 100 for count in covered.values()), covered
    assert min(covered.values()) < 100  # An interval that always covers says nothing.


def test_estimates_of_what_is_not_there_are_left_out():
    plain = [dataclasses.replace(look, groups=None, own_noise=np.nan) for look in looks(4)]
    found = estimate(plain, 12)
    assert "group_correlation" not in found
    assert "own_noise" not in found
    share, _ = estimate(looks(4), 12)["own_noise"]
    np.testing.assert_allclose(share, 0.9 / (SHARED + OWN), rtol=0.5)


def test_norm_spread_compares_the_largest_with_the_median():
    look = looks(1)[0]
    gram = np.diag([1.0, 1.0, 1.0, 100.0])
    look = dataclasses.replace(look, gram=gram, batches=np.array([0, 0, 1, 1]), groups=None)
    assert norm_spread([look]) == 10.0
