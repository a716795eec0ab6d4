"""How tasks run: side by side, in chunks or in turn, with the same result."""

import jax.numpy as jnp
import numpy as np
import pytest

from maml_jax.layout import Layout
from maml_jax.task_axis import map_tasks


@pytest.mark.parametrize("side_by_side", [1, 2, 3, 5, 7])
def test_map_tasks_equals_a_loop(side_by_side):
    values = {"a": jnp.arange(5.0), "b": jnp.arange(10.0).reshape(5, 2)}
    layout = Layout(side_by_side=side_by_side)
    got = map_tasks(lambda factor, task: factor * task["a"] * task["b"], 3.0, values, layout)
    np.testing.assert_array_equal(got, 3 * values["a"][:, None] * values["b"])
