"""Tasks whose meta-gradients are known on paper, and a small nonlinear one.

The linear regression task of loss ½ mean (xᵀθ - y)² has the gradient A θ - b with
A = XᵀX/N and b = Xᵀy/N. K steps of SGD give θ_K in closed form, with the Jacobian
(I - α A_support)ᴷ, so the meta-gradient is (I - α A_support)ᴷ (A_query θ_K - b_query).
Every tree here holds a vector, a square, a non-square and a convolution-shaped leaf.
"""

import jax
import jax.numpy as jnp
import numpy as np

from maml_jax import Examples, Task

SHAPES = {"vector": (3,), "square": (2, 2), "oblong": (1, 3), "kernel": (1, 1, 2, 1), "scalar": ()}
DIM = sum(int(np.prod(shape)) for shape in SHAPES.values())


def flat(tree):
    """Concatenates the leaves of a tree like `params()` to `[DIM]`."""
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tree)])


def flat_rows(tree):
    """Concatenates the leaves of a tree with a task axis to `[T, DIM]`."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)


def unflat(vector):
    """Inverts `flat`."""
    tree, start = {}, 0
    for name in sorted(SHAPES):
        size = int(np.prod(SHAPES[name]))
        tree[name] = jnp.asarray(vector[start : start + size]).reshape(SHAPES[name])
        start += size
    return tree


def unflat_rows(rows):
    """Inverts `flat_rows`: `[T, DIM]` to a tree of `[T, ...]`."""
    tree, start = {}, 0
    for name in sorted(SHAPES):
        size = int(np.prod(SHAPES[name]))
        columns = rows[:, start : start + size]
        tree[name] = jnp.asarray(columns).reshape(len(rows), *SHAPES[name])
        start += size
    return tree


def params(seed=0):
    """A random tree of parameters."""
    return unflat(np.random.default_rng(seed).normal(size=DIM))


def linear_loss(params, examples):
    """½ mean (xᵀθ - y)² over the unmasked examples."""
    theta = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(params)])
    errors = 0.5 * jnp.square(examples.inputs @ theta - examples.targets)
    if examples.mask is None:
        return errors.mean()
    return jnp.where(examples.mask, errors, 0).sum() / examples.mask.sum()


def linear_tasks(num_tasks=4, support=5, query=7, seed=1, masked=False):
    """A meta-batch of random linear regression tasks."""
    rng = np.random.default_rng(seed)

    def examples(count):
        mask = None
        if masked:
            mask = rng.random((num_tasks, count)) < 0.6
            mask[:, 0] = True
        inputs = jnp.asarray(rng.normal(size=(num_tasks, count, DIM)))
        targets = jnp.asarray(rng.normal(size=(num_tasks, count)))
        if masked:
            inputs = jnp.where(jnp.asarray(mask)[:, :, None], inputs, jnp.nan)
            mask = jnp.asarray(mask)
        return Examples(inputs=inputs, targets=targets, mask=mask)

    return Task(support=examples(support), query=examples(query))


def masked_linear_loss(params, examples):
    """As `linear_loss`, safe for NaN in the padding."""
    clean = jnp.where(jnp.isnan(examples.inputs), 0.0, examples.inputs)
    examples = Examples(inputs=clean, targets=examples.targets, mask=examples.mask)
    return linear_loss(params, examples)


def moments(examples, index):
    """A and b of one task, from its unmasked examples."""
    inputs, targets = np.asarray(examples.inputs)[index], np.asarray(examples.targets)[index]
    if examples.mask is not None:
        keep = np.asarray(examples.mask)[index]
        inputs, targets = inputs[keep], targets[keep]
    return inputs.T @ inputs / len(inputs), inputs.T @ targets / len(inputs)


def closed_form(theta, tasks, rate, num_steps, *, first_order=False):
    """Meta-gradients `[T, DIM]` and adapted parameters `[T, DIM]` of linear tasks."""
    grads, adapted = [], []
    for index in range(len(tasks.support.targets)):
        a, b = moments(tasks.support, index)
        point = np.array(theta)
        for _ in range(num_steps):
            point = point - rate * (a @ point - b)
        jacobian = np.linalg.matrix_power(np.eye(DIM) - rate * a, num_steps)
        a_query, b_query = moments(tasks.query, index)
        grad = a_query @ point - b_query
        grads.append(grad if first_order else jacobian @ grad)
        adapted.append(point)
    return np.array(grads), np.array(adapted)


def network(seed=0, width=5):
    """Parameters of a small network of one smooth hidden layer."""
    rng = np.random.default_rng(seed)
    return {
        "body": {"kernel": jnp.asarray(rng.normal(size=(1, width))), "bias": jnp.zeros(width)},
        "head": {"kernel": jnp.asarray(rng.normal(size=(width, 1))), "bias": jnp.zeros(1)},
    }


def apply_network(params, inputs, mask=None):
    """Applies the network of `network`."""
    del mask  # No batch statistics.
    hidden = jnp.tanh(inputs @ params["body"]["kernel"] + params["body"]["bias"][None])
    return hidden @ params["head"]["kernel"] + params["head"]["bias"][None]


def assert_trees_close(actual, expected, rtol, atol=0.0):
    """Compares trees leaf by leaf, relative to the largest entry of the leaf."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for got, want in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        got, want = np.asarray(got), np.asarray(want)
        assert got.shape == want.shape
        scale = max(np.abs(want).max(initial=0.0), 1e-30)
        np.testing.assert_allclose(got, want, rtol=0, atol=rtol * scale + atol)
