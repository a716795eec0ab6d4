"""How many tasks run side by side, and what "auto" makes of what one keeps."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maml_jax as mj
from maml_jax import layout
from maml_jax.chunks import chunk_size
from maml_jax.layout import check_task_axis, layout_of
from maml_jax.residuals import bytes_kept


def tasks(num_tasks=8, examples=5):
    part = mj.Examples(
        inputs=jnp.zeros((num_tasks, examples, 2)), targets=jnp.zeros((num_tasks, examples))
    )
    return mj.Task(support=part, query=part)


def task_loss(params, task):
    """Keeps the cosine of its 10 products, and 10 inputs."""
    return jnp.sum(jnp.sin(params * task.query.inputs)), {}


def params():
    return jnp.zeros((1, 1))


def use_gpu(numbers, monkeypatch):
    """Makes `layout_of` see a GPU with room for so many numbers, or one that does not tell."""
    stats = numbers and {"bytes_limit": numbers * params().dtype.itemsize}
    device = types.SimpleNamespace(platform="gpu", memory_stats=lambda: stats)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])


@pytest.mark.parametrize(("axis", "want"), [("vmap", 8), ("scan", 1), (3, 3), (50, 8), ("auto", 8)])
def test_named_layouts(axis, want):
    assert layout_of(axis, task_loss, params(), tasks()).side_by_side == want


@pytest.mark.parametrize(
    ("num_tasks", "fits", "want"),
    [
        (32, 100, 32),
        (32, 0, 1),  # One task runs, whether it fits or not.
        (32, 1, 1),
        (32, 20, 16),
        (1024, 60, 32),
        (25, 24, 24),  # 5 would leave most of the room empty.
        (7, 3, 3),
    ],
)
def test_as_many_as_fit_and_no_rest_where_that_is_cheap(num_tasks, fits, want):
    assert chunk_size(num_tasks, fits) == want


def test_auto_runs_one_large_task_at_a_time_on_a_cpu(monkeypatch):
    each = 20 * params().dtype.itemsize
    monkeypatch.setattr(layout, "_SMALL_TASKS_BYTES", 4 * each)
    monkeypatch.setattr(layout, "_LARGE_TASK_BYTES", each)
    assert layout_of("auto", task_loss, params(), tasks()).side_by_side == 4
    monkeypatch.setattr(layout, "_LARGE_TASK_BYTES", each - 1)
    assert layout_of("auto", task_loss, params(), tasks()).side_by_side == 1


@pytest.mark.parametrize(
    ("large", "share", "num_tasks", "want"),
    [
        (20, 1000, 8, None),
        (19, 1000, 8, 4),
        (20, 81, 8, None),
        (20, 80, 8, 2),
        (20, 53, 8, 3),
        (20, 40, 8, 4),
        (20, 1, 8, 4),
    ],
)
def test_cores_share_large_tasks_and_many_small_ones(large, share, num_tasks, want, monkeypatch):
    """A task keeps 20 numbers; limits are in numbers, and 8 tasks of 20 are 160."""
    if len(jax.devices()) != 4:
        pytest.skip(f"for 4 devices, has {len(jax.devices())}")
    monkeypatch.setattr(layout, "_LARGE_TASK_BYTES", large * params().dtype.itemsize)
    monkeypatch.setattr(layout, "_SHARE_BYTES", share * params().dtype.itemsize)
    mesh = layout.mesh_for(task_loss, params(), tasks(), num_tasks)
    assert (mesh and mesh.size) == want


@pytest.mark.parametrize(
    ("num_tasks", "large", "together", "backend", "want"),
    [
        (4, 20, 80, "cpu", True),
        (5, 20, 80, "cpu", False),
        (4, 19, 80, "cpu", False),
        (4, 20, 80, "gpu", False),
    ],
)
def test_few_small_tasks_fit_one_core(num_tasks, large, together, backend, want, monkeypatch):
    """A task keeps 20 numbers."""
    itemsize = params().dtype.itemsize
    monkeypatch.setattr(layout, "_LARGE_TASK_BYTES", large * itemsize)
    monkeypatch.setattr(layout, "_ONE_CORE_BYTES", together * itemsize)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert layout.fits_one_core(task_loss, params(), tasks(), num_tasks) is want


def test_small_tasks_that_cores_share_run_a_few_at_a_time(monkeypatch):
    each = 20 * params().dtype.itemsize
    monkeypatch.setattr(layout, "_LARGE_TASK_BYTES", 2 * each)
    mesh = jax.sharding.Mesh(jax.devices()[:2], ("tasks",))
    assert layout_of("auto", task_loss, params(), tasks(), mesh=mesh).side_by_side == 2


@pytest.mark.parametrize(("tasks_in_memory", "want"), [(4, 2), (40, 8), (None, 8)])
def test_auto_takes_half_of_the_memory_of_an_accelerator(tasks_in_memory, want, monkeypatch):
    """A backend that does not tell its memory runs all tasks side by side."""
    use_gpu(tasks_in_memory and tasks_in_memory * 20, monkeypatch)
    assert layout_of("auto", task_loss, params(), tasks()).side_by_side == want


def test_what_an_accelerator_makes_again_needs_room(monkeypatch):
    """A task keeps its 10 inputs and 1 parameter, and makes these and 10 cosines again."""
    use_gpu(2 * 2 * (11 + 21), monkeypatch)
    loss = jax.checkpoint(task_loss)
    assert layout_of("auto", loss, params(), tasks()).side_by_side == 2


def test_auto_changes_no_result(monkeypatch, tolerance):
    """Oracle: all tasks side by side; "auto" is made to take chunks of 2 of 5."""
    model = mj.models.Mlp(features=(8, 1))
    loss_fn, inner = mj.losses.regression(model.apply), mj.maml(optax.sgd(0.01), 1)
    meta_batch = mj.meta_batch(mj.data.sinusoid(), jax.random.key(0), 5)
    results = []
    for axis in ("vmap", "auto"):
        outer = mj.make_outer_step(loss_fn, inner, optax.sgd(0.1), task_axis=axis)
        state = outer.init(model.init(jax.random.key(1), jnp.zeros((1, 1))))
        results.append(outer.gradient(state, meta_batch))
        one = functools.partial(mj.inner_loop.task_loss, inner, loss_fn)
        each = bytes_kept(one, state.params, meta_batch)
        monkeypatch.setattr(layout, "_SMALL_TASKS_BYTES", 2 * each)
    assert [int(metrics["side_by_side"]) for _, metrics in results] == [5, 2]
    for got, want in zip(*(jax.tree.leaves(grads) for grads, _ in results), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * float(jnp.abs(want).max()))


@pytest.mark.parametrize("axis", ["vmapped", 0, -1, True, 2.0, None])
def test_unknown_axis(axis):
    with pytest.raises(ValueError, match="task_axis must be 'auto', 'vmap', 'scan' or a chunk"):
        check_task_axis(axis)
