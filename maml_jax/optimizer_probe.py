"""Runs an optimizer on gradients that are made for it, as a black box, and compares two runs.

Letters in shapes: S steps, P entries of all parameters together, L leaves.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from maml_jax.tasks import Params

VALUE = 0.1  # the loss that goes with a gradient of norm 1


class Run(NamedTuple):
    """What an optimizer made of a stream of gradients.

    Attributes:
      updates: `[S, P]`.
      path: `[S, P]`, the parameters before each step.
    """

    updates: np.ndarray
    path: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe:
    """An optimizer, the parameters it is tried on, and a stream of gradients.

    Attributes:
      run: `(grads [S, P], *, params=None [P], path=None [S, P], value=VALUE) -> Run`. Starts at
        `params`, by default those of the probe. Each update is applied, or, with `path`,
        ignored: then the parameters are those of `path`, whatever the updates.
      params: `[P]`.
      sizes: entries of each leaf, `[L]`.
      names: path of each leaf in the tree, `[L]`.
      shapes: of each leaf, `[L]`.
      stream: `[S, P]`, gradients with a common direction and noise, of norms in [0.5, 2].
      signs: `[S, P]`, random signs over the root of P: norm 1, all entries alike.
    """

    run: Callable[..., Run]
    params: np.ndarray
    sizes: tuple[int, ...]
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    stream: np.ndarray
    signs: np.ndarray

    @property
    def num_steps(self) -> int:
        """Number of steps S of a run."""
        return len(self.stream)


def make_probe(
    optimizer: optax.GradientTransformation, *, params: Params | None = None, num_steps: int = 24
) -> Probe:
    """Prepares an optimizer for probing; compiled once, whatever is asked of it later.

    Args:
      optimizer: any optax transformation; it is given `value` if it asks.
      params: the tree to try it on, with these values; None is a vector and two matrices of
        entries ±0.5, so that a unit has the same norm in each.
      num_steps: S, steps of each run, at least 2.

    Returns:
      The probe, deterministic: no seed to give.

    Raises:
      ValueError: if the optimizer cannot run this way.
    """
    rng = np.random.default_rng(0)
    tree = _default_params(rng) if params is None else jax.tree.map(jnp.asarray, params)
    flat, unravel = ravel_pytree(tree)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    signs = rng.choice([-1.0, 1.0], (num_steps, flat.size)) / np.sqrt(flat.size)
    stream = rng.normal(size=(num_steps, flat.size)) + 0.7 * rng.normal(size=flat.size)
    norms = 0.5 * 4 ** rng.permutation(np.linspace(0.0, 1.0, num_steps))
    stream *= (norms / np.linalg.norm(stream, axis=1))[:, None]
    trajectory = _compile(optax.with_extra_args_support(optimizer), unravel)

    def run(grads, *, params=None, path=None, value=VALUE):
        start = np.asarray(flat) if params is None else params
        follow = path is not None
        dtype = flat.dtype
        updates, visited = trajectory(
            jnp.asarray(start, dtype),
            jnp.asarray(grads, dtype),
            jnp.asarray(path if follow else np.zeros_like(grads), dtype),
            follow,
            jnp.asarray(value, dtype),
        )
        return Run(np.asarray(updates, np.float64), np.asarray(visited, np.float64))

    probe = Probe(
        run=run,
        params=np.asarray(flat, np.float64),
        sizes=tuple(leaf.size for _, leaf in leaves),
        names=tuple(jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves),
        shapes=tuple(leaf.shape for _, leaf in leaves),
        stream=stream,
        signs=signs,
    )
    _try_once(probe, optimizer)
    return probe


def leaf_norms(probe: Probe, vectors: np.ndarray) -> np.ndarray:
    """Norm of each leaf's part of vectors `[S, P]`: `[S, L]`."""
    parts = np.split(vectors, np.cumsum(probe.sizes)[:-1], axis=1)
    return np.stack([np.linalg.norm(part, axis=1) for part in parts], axis=1)


def difference(probe: Probe, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Relative difference of updates, ‖u − v‖ / max(‖u‖, ‖v‖), step by step and leaf by leaf.

    Args:
      probe: gives the leaves.
      first: updates `[S, P]`.
      second: updates `[S, P]`.

    Returns:
      `[S, L]`, in [0, 2]; 0 where both are zero, nan where one diverged.
    """
    size = np.maximum(leaf_norms(probe, first), leaf_norms(probe, second))
    with np.errstate(invalid="ignore"):
        return leaf_norms(probe, first - second) / np.where(size > 0, size, 1.0)


def size(updates: np.ndarray) -> float:
    """Root of the mean squared norm of updates `[S, P]`."""
    return float(np.sqrt(np.mean(np.sum(updates**2, axis=1))))


def run_held(probe: Probe, grads: np.ndarray, *, at_zero: bool) -> Run:
    """Runs with the parameters held where the probe has them, or held at zero.

    Args:
      probe: the optimizer.
      grads: `[S, P]`.
      at_zero: whether to hold them at zero.

    Returns:
      The run.
    """
    params = np.zeros_like(probe.params) if at_zero else probe.params
    return probe.run(grads, params=params, path=np.zeros_like(grads) + params)


def _default_params(rng) -> Any:
    shapes = {"matrix": (4, 3), "square": (4, 4), "vector": (5,)}
    return {
        name: jnp.asarray(0.5 * rng.choice([-1.0, 1.0], shape), jnp.float32)
        for name, shape in shapes.items()
    }


def _compile(optimizer, unravel):
    """Compiles S steps of an optimizer on flat parameters and gradients."""

    def step(follow, carry, inputs):
        params, state = carry
        grads, elsewhere, value = inputs
        params = jnp.where(follow, elsewhere, params)
        updates, state = optimizer.update(unravel(grads), state, unravel(params), value=value)
        updates = ravel_pytree(updates)[0].astype(params.dtype)
        return (params + updates, state), (updates, params)

    @jax.jit
    def trajectory(params, grads, path, follow, value):
        values = jnp.broadcast_to(value, grads.shape[:1])
        one_step = functools.partial(step, follow)
        carry = (params, optimizer.init(unravel(params)))
        # Some states change their dtype in the first update, when 64-bit mode is on.
        after = jax.eval_shape(one_step, carry, (grads[0], path[0], values[0]))[0]
        carry = jax.tree.map(
            lambda leaf, new: leaf if leaf.dtype == new.dtype else leaf.astype(new.dtype),
            carry,
            after,
        )
        return jax.lax.scan(one_step, carry, (grads, path, values))[1]

    return trajectory


def _try_once(probe: Probe, optimizer) -> None:
    try:
        updates = probe.run(probe.stream).updates
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"the optimizer must run on (grads, state, params, value=...), got: {reason} If its "
            "settings name leaves of your parameters, pass params=."
        ) from error
    if not np.isfinite(updates).all():
        raise ValueError(
            "the optimizer must make finite updates, got nan or inf for gradients of norm 1."
        )
    if not updates.any():
        raise ValueError(
            f"the optimizer must move the parameters, got {probe.num_steps} updates of zero for "
            "gradients of norm 1; if it accumulates over more steps, raise num_steps."
        )
