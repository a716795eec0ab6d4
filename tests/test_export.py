"""One outer step, lowered for CPU, GPU and TPU at once, on a machine that has only a CPU.

    python -m pytest tests/test_export.py

A program of three platforms holds what each of them lowers otherwise, such as the convolution of a
CPU, and picks where it runs. Losses check labels by `checkify.debug_check`, an effect that cannot
be written to bytes: `checkify.checkify` takes it out.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export
from jax.experimental import checkify

import maml_jax as mj

pytestmark = pytest.mark.slow

PLATFORMS = ("cpu", "cuda", "tpu")
MODEL = mj.models.Conv4(2, features=2, pooling=True)
INNER = {
    "maml": mj.maml(optax.sgd(0.1), 1),
    "mixed": mj.maml(optax.sgd(0.1), 1, differentiate="mixed"),
}


@functools.cache
def problem(inner, axis):
    """An outer step, its state, and 3 tasks of noise: 2-way, images of 16x16 pixels."""
    support_key, query_key = jax.random.split(jax.random.key(0))

    def examples(key, count):
        labels = jnp.tile(jnp.arange(2), (3, count // 2))
        return mj.Examples(inputs=jax.random.normal(key, (3, count, 16, 16, 1)), targets=labels)

    params = jax.jit(MODEL.init)(jax.random.key(1), jnp.zeros((1, 16, 16, 1)))
    loss_fn = mj.losses.classification(MODEL.apply)
    outer = mj.make_outer_step(loss_fn, INNER[inner], optax.adam(1e-3), task_axis=axis)
    tasks = mj.Task(support=examples(support_key, 2), query=examples(query_key, 4))
    return outer, outer.init(params), tasks


@functools.cache
def exported_update(inner, axis, platforms=PLATFORMS):
    """Exports the update as a function of a flat list of arrays, which any program can call."""
    outer, state, tasks = problem(inner, axis)
    leaves, structure = jax.tree.flatten((state, tasks))

    def update(*leaves):
        _, result = checkify.checkify(outer.update)(*jax.tree.unflatten(structure, leaves))
        return jax.tree.leaves(result)

    return export.export(jax.jit(update), platforms=platforms)(*leaves)


def assert_does_the_same(exported, inner, axis, tolerance):
    outer, state, tasks = problem(inner, axis)
    want = outer.update(state, tasks)
    leaves = exported.call(*jax.tree.leaves((state, tasks)))
    got = jax.tree.unflatten(jax.tree.structure(want), leaves)
    for name, value in want[1].items():
        np.testing.assert_allclose(got[1][name], value, rtol=1e3 * tolerance, err_msg=name)
    moved = jax.tree.map(lambda new, old: jnp.abs(new - old).max(), want[0].params, state.params)
    assert max(jax.tree.leaves(moved)) > 1e-4
    for a, b in zip(*map(jax.tree.leaves, (got[0], want[0])), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e3 * tolerance, atol=tolerance)


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("axis", ["vmap", "scan"])
def test_one_program_for_cpu_gpu_and_tpu(inner, axis):
    assert exported_update(inner, axis).platforms == PLATFORMS


@pytest.mark.parametrize(("inner", "axis"), [("maml", "vmap"), ("mixed", "scan")])
def test_on_a_cpu_it_does_what_the_call_does(inner, axis, tolerance):
    """Oracle: the same call without export."""
    assert_does_the_same(exported_update(inner, axis), inner, axis, tolerance)


def test_written_to_bytes_and_read_again(tolerance):
    """Oracle: the same call, in this process, without export."""
    pytest.importorskip("flatbuffers", reason="jax.export writes programs by flatbuffers")
    again = export.deserialize(exported_update("maml", "vmap").serialize())
    assert again.platforms == PLATFORMS
    assert_does_the_same(again, "maml", "vmap", tolerance)


def test_a_cpu_has_a_form_of_its_own():
    """Convolutions of accelerators are plain products; on a CPU they are others."""
    cpu, tpu, cuda = (
        re.sub(r"loc\(.*?\)|#loc.*", "", exported_update("maml", "vmap", (name,)).mlir_module())
        for name in ("cpu", "tpu", "cuda")
    )
    assert tpu == cuda
    assert tpu != cpu
