"""The rules on the Gram matrix that draw an order or choose tasks: loops in NumPy as oracles."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maml_jax import aggregation as agg
from maml_jax.aggregation import surgery

pytestmark = pytest.mark.slow

X64 = jax.config.jax_enable_x64
CLOSE = 1e-11 if X64 else 2e-5


def random_rows(num_tasks, dim, seed=0):
    """With enough conflicts: most pairs of so many tasks in so few dimensions."""
    return np.random.default_rng(seed).normal(size=(num_tasks, dim))


@functools.partial(jax.jit, static_argnums=0)
def _apply(rule, grads, mask, key, task_ids, state):
    options = {"mask": mask, "key": key, "task_ids": task_ids, "state": state}
    return agg.aggregate(rule, grads, **options)


def apply(rule, grads, *, mask=None, seed=0, task_ids=None, state=None):
    mask = np.ones(len(grads), bool) if mask is None else mask
    ids = np.arange(len(grads)) if task_ids is None else np.asarray(task_ids)
    state = rule.init() if state is None else state
    return _apply(rule, jnp.asarray(grads), jnp.asarray(mask), jax.random.key(seed), ids, state)


def orders(num_tasks, seed=0, mask=None):
    valid = jnp.ones(num_tasks, bool) if mask is None else jnp.asarray(mask)
    return np.asarray(surgery._random_orders(jax.random.key(seed), valid))


def close(got, want, tolerance=CLOSE):
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())


def test_pcgrad_of_two_tasks_in_closed_form():
    """½ (g₁ + g₂ - ⟨g₁, g₂⟩ (g₁ / ‖g₁‖² + g₂ / ‖g₂‖²)) if they conflict, else the mean."""
    for seed in range(4):
        first, second = random_rows(2, 3, seed)
        product = min(first @ second, 0)
        off = product * (first / (first @ first) + second / (second @ second))
        close(apply(agg.pcgrad(), np.stack([first, second]))[0], (first + second - off) / 2)


def loop_pcgrad(grads, order):
    results = []
    for i, grad in enumerate(grads):
        for j in order[i]:
            product = grad @ grads[j]
            if j != i and product < 0:
                grad = grad - product / (grads[j] @ grads[j]) * grads[j]
        results.append(grad)
    return np.mean(results, axis=0)


@pytest.mark.parametrize("seed", [0, 1])
def test_pcgrad_is_the_loop_of_the_paper(seed):
    grads = random_rows(7, 4, seed) * 10.0 ** np.arange(-3, 4)[:, None]
    close(apply(agg.pcgrad(), grads, seed=seed)[0], loop_pcgrad(grads, orders(7, seed)))


def test_orders_are_uniform_and_independent():
    """The 6 orders of the other three of 4 tasks, 4 x 1000 draws: within 5 deviations."""
    draws = np.stack([orders(4, seed) for seed in range(1000)])
    for task in range(4):
        others = [tuple(j for j in row if j != task) for row in draws[:, task]]
        for order in itertools.permutations(j for j in range(4) if j != task):
            assert abs(others.count(order) - 1000 / 6) < 5 * np.sqrt(1000 * 5 / 36)
    assert np.mean(draws[:, 0].argsort()[:, 2] == draws[:, 1].argsort()[:, 2]) < 0.5


def loop_gradvac(grads, order, targets, ids):
    results, seen = [], {}
    for i, start in enumerate(grads):
        grad = start
        for j in order[i]:
            if j == i:
                continue
            cosine = grad @ grads[j] / np.linalg.norm(grad) / np.linalg.norm(grads[j])
            target = targets[ids[i], ids[j]]
            if cosine < target:
                sines = np.sqrt(1 - target**2), np.sqrt(1 - cosine**2)
                factor = np.linalg.norm(grad) / np.linalg.norm(grads[j]) / sines[0]
                grad = grad + factor * (target * sines[1] - cosine * sines[0]) * grads[j]
            seen.setdefault((ids[i], ids[j]), []).append(cosine)
        results.append(grad)
    return np.mean(results, axis=0), seen


def test_gradvac_is_the_loop_of_the_paper():
    """Three steps; tasks 4 and 1 of the first share an id, and each step has its own ids."""
    rule, targets = agg.gradvac(6, decay=0.5), np.zeros((6, 6))
    state = rule.init()
    for step, ids in enumerate(([0, 3, 1, 2, 3], [5, 0, 1, 2, 3], [0, 1, 2, 3, 4])):
        grads = random_rows(5, 4, step)
        got, state = apply(rule, grads, seed=step, task_ids=ids, state=state)
        want, seen = loop_gradvac(grads, orders(5, step), targets, ids)
        close(got, want, 10 * CLOSE)
        for pair, cosines in seen.items():
            targets[pair] = 0.5 * targets[pair] + 0.5 * np.mean(cosines)
        close(state, targets, 10 * CLOSE)


def test_gradvac_turns_two_tasks_to_their_target():
    """The cosine of each with the other is the target, then their mean is the bisector."""
    grads = np.array([[1.0, 0.0], [-0.6, 0.8]])
    state = jnp.full((2, 2), 0.5)
    got, _ = apply(agg.gradvac(2), grads, state=state)
    first = grads[0] + grads[1] * (0.5 * 0.8 + 0.6 * np.sqrt(0.75)) / np.sqrt(0.75)
    second = grads[1] + grads[0] * (0.5 * 0.8 + 0.6 * np.sqrt(0.75)) / np.sqrt(0.75)
    np.testing.assert_allclose(first @ grads[1] / np.linalg.norm(first), 0.5, rtol=1e-12)
    close(got, (first + second) / 2)


def test_gradvac_without_targets_is_pcgrad():
    grads = random_rows(6, 4)
    close(apply(agg.gradvac(6), grads)[0], apply(agg.pcgrad(), grads)[0])


def test_gradvac_bears_agreement():
    """A target of 1 and gradients alike up to rounding: nothing turns."""
    grads = random_rows(1, 5) + (1e-8 if X64 else 1e-4) * random_rows(4, 5, 1)
    got, state = apply(agg.gradvac(4), grads, state=jnp.ones((4, 4)))
    close(got, grads[0], 1e-6 if X64 else 1e-3)
    np.testing.assert_allclose(state, 1, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, 0.0])
@pytest.mark.parametrize("rule", [agg.pcgrad(), agg.gradvac(8, decay=0.5)], ids=["pcgrad", "vac"])
def test_masked_tasks_do_not_change_what_others_draw(rule, bad):
    """Exactly the result and the state of the meta-batch without them."""
    grads = random_rows(7, 4)
    keep = np.array([0, 2, 3, 5, 6])
    mask = np.isin(np.arange(7), keep)
    state = None if rule.num_task_ids is None else jnp.full((8, 8), 0.25)
    want, want_state = apply(rule, grads[keep], task_ids=keep, state=state)
    grads[~mask] = bad
    got, got_state = apply(rule, grads, mask=mask, state=state)
    close(got, want)
    if state is not None:
        close(got_state, want_state)


def test_a_task_at_rest_keeps_its_targets():
    grads = random_rows(3, 4)
    grads[1] = 0
    _, state = apply(agg.gradvac(3, decay=0.5), grads, state=jnp.full((3, 3), 0.25))
    np.testing.assert_allclose(state[1], 0.25)
    np.testing.assert_allclose(state[:, 1], 0.25)
    assert abs(state[0, 2] - 0.25) > 0.01


def brute_krum(grads, num_byzantine, num_selected):
    distances = np.square(grads[:, None] - grads[None]).sum(-1)
    near = len(grads) - num_byzantine - 2
    scores = [np.sort(np.delete(row, i))[:near].sum() for i, row in enumerate(distances)]
    return grads[np.argsort(scores)[:num_selected]].mean(0)


@pytest.mark.parametrize(("num_byzantine", "num_selected"), [(0, 1), (2, 1), (3, 4), (0, 11)])
def test_krum_by_brute_force(num_byzantine, num_selected):
    rule = agg.krum(num_byzantine, num_selected)
    for seed in range(5):
        grads = random_rows(11, 6, seed)
        close(apply(rule, grads)[0], brute_krum(grads, num_byzantine, num_selected))
        # The number of neighbours is that of the valid tasks.
        keep = np.array([0, 1, 2, 4, 5, 7, 8, 10])
        mask = np.isin(np.arange(11), keep)
        want = brute_krum(grads[keep], num_byzantine, num_selected)
        close(apply(rule, np.where(mask[:, None], grads, 1e3), mask=mask)[0], want)


def test_krum_leaves_out_the_byzantine():
    """Two tasks far away, and alike: with squared distances each still has far neighbours."""
    grads = random_rows(9, 6)
    grads[[2, 6]] = 1e4
    for num_selected in (1, 5):
        got = apply(agg.krum(2, num_selected), grads)[0]
        assert np.linalg.norm(got) < np.linalg.norm(np.delete(grads, [2, 6], 0), axis=1).max()


@pytest.mark.parametrize(
    "rule",
    [agg.mgda(), agg.upgrad(), agg.cagrad(), agg.nash_mtl(), agg.krum(1), agg.config()],
    ids=lambda rule: rule.name,
)
def test_rules_are_batched(rule):
    """Meta-batches side by side, with their own numbers of pivots: as one after the other."""
    batch = np.stack([random_rows(6, 9, seed) for seed in range(3)])
    batch[1] = batch[1, :1]  # Identical gradients.
    batch[2, :, 3:] = 0  # Linearly dependent ones.
    got = jax.vmap(lambda grads: agg.aggregate(rule, grads))(jnp.asarray(batch))
    for result, grads in zip(got, batch, strict=True):
        scale = np.linalg.norm(grads, axis=1).max()
        want = agg.aggregate(rule, jnp.asarray(grads))
        np.testing.assert_allclose(result, want, atol=(1e-7 if X64 else 2e-3) * scale)
