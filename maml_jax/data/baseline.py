"""The baseline that learns nothing: the nearest support image in pixels."""

import jax
import jax.numpy as jnp

from maml_jax.tasks import Task


def nearest_neighbour_accuracy(task: Task) -> jax.Array:
    """Scores one task by the nearest support image: the baseline that learns nothing.

    Each query takes the target of the support input at the least Euclidean distance.

    Args:
      task: one task; inputs `[N, ...]`, targets class indices `[N]`. Masks are obeyed:
        padding neither votes nor counts.

    Returns:
      The fraction of queries that come out right: a float32 scalar in [0, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> from maml_jax import Examples, Task
      >>> from maml_jax.data import nearest_neighbour_accuracy
      >>> support = Examples(inputs=jnp.array([[0.0], [1.0]]), targets=jnp.array([0, 1]))
      >>> query = Examples(inputs=jnp.array([[0.4], [0.9]]), targets=jnp.array([0, 0]))
      >>> float(nearest_neighbour_accuracy(Task(support=support, query=query)))
      0.5
    """
    support = task.support.inputs.reshape(len(task.support.inputs), -1)
    query = task.query.inputs.reshape(len(task.query.inputs), -1)
    # |q|² is the same for every candidate, so it is left out.
    distances = jnp.sum(support**2, axis=1)[None, :] - 2.0 * jnp.matmul(
        query, support.T, precision=jax.lax.Precision.HIGHEST
    )
    if task.support.mask is not None:
        distances = jnp.where(task.support.mask[None, :], distances, jnp.inf)
    predicted = task.support.targets[jnp.argmin(distances, axis=1)]
    right = (predicted == task.query.targets).astype(jnp.float32)
    return jnp.mean(right, where=task.query.mask)
