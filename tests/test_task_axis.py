"""How tasks run: the choice of "auto", and that it never changes a result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import maml_jax as mj
from maml_jax.task_axis import Layout, check_task_axis, layout_of, map_tasks


def tasks(num_tasks, examples):
    part = mj.Examples(
        inputs=jnp.zeros((num_tasks, examples, 2)), targets=jnp.zeros((num_tasks, examples))
    )
    return mj.Task(support=part, query=part)


@pytest.mark.parametrize(
    ("axis", "params", "want"),
    [
        ("vmap", 10, 8),
        ("scan", 10, 1),
        (3, 10, 3),
        (50, 10, 8),
        ("auto", 10, 8),
        pytest.param(
            "auto",
            200_000,
            1,
            marks=pytest.mark.skipif(jax.default_backend() != "cpu", reason="a rule of the CPU"),
        ),
    ],
)
def test_layout_of(axis, params, want):
    """8 tasks of 2 x 5 examples: 10 parameters are a small task, 200,000 a large one."""
    assert layout_of(axis, jnp.zeros(params), tasks(8, 5)).side_by_side == want


@pytest.mark.parametrize("side_by_side", [1, 2, 3, 5, 7])
def test_map_tasks_equals_a_loop(side_by_side):
    values = {"a": jnp.arange(5.0), "b": jnp.arange(10.0).reshape(5, 2)}
    layout = Layout(side_by_side=side_by_side)
    got = map_tasks(lambda factor, task: factor * task["a"] * task["b"], 3.0, values, layout)
    np.testing.assert_array_equal(got, 3 * values["a"][:, None] * values["b"])


@pytest.mark.parametrize("axis", ["vmapped", 0, -1, True, 2.0, None])
def test_unknown_axis(axis):
    with pytest.raises(ValueError, match="task_axis must be 'auto', 'vmap', 'scan' or a chunk"):
        check_task_axis(axis)
