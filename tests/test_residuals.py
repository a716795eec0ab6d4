"""What a task keeps for its backward pass, and what that makes again, in bytes."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest

import maml_jax as mj
from maml_jax.residuals import bytes_kept, bytes_made_again

NUMBER = jnp.result_type(float).itemsize


def num_numbers(count, loss):
    """Counts for tasks of 10 numbers, of which a loss has the parameter and one."""
    shapes = jax.ShapeDtypeStruct((8, 10), jnp.result_type(float))
    return count(lambda param, x: (loss(param, x), {}), jnp.ones(()), shapes) / NUMBER


def sines(param, x):
    """Keeps the cosine of 10 products and the 10 inputs, for the inputs' sake the parameter too."""
    return jnp.sum(jnp.sin(param * x))


def test_what_is_kept_is_counted():
    """Oracle: by hand."""
    assert num_numbers(bytes_kept, sines) == 10 + 10
    assert num_numbers(bytes_kept, jax.checkpoint(sines)) == 1 + 10


def again(param, x):
    return jax.checkpoint(sines)(param, x)


def largest_of_two(param, x):
    return again(param, x[:3]) + again(param, x)


def one_at_a_time(param, x):
    return jax.lax.scan(lambda carry, _: (again(carry, x), None), param, length=7)[0]


def one_within_another(param, x):
    """The outer one makes 10 squares again, from which the inner one starts."""
    return jax.checkpoint(lambda param, x: again(param, x**2))(param, x)


def either(param, x):
    return jax.lax.cond(param > 0, again, lambda param, x: param, param, x)


@pytest.mark.parametrize(
    ("loss", "want"),
    [
        (sines, 0),
        (again, 21),
        (jax.jit(again), 21),
        (largest_of_two, 21),
        (one_at_a_time, 21),
        (either, 21),
    ],
)
def test_what_is_made_again_is_the_largest_part(loss, want):
    """Oracle: by hand, the residuals of `sines` of its two arguments."""
    assert num_numbers(bytes_made_again, loss) == want


def test_parts_within_parts_add_up():
    """Of the outer part the parameter, 10 squares and 10 derivatives of theirs; then 21."""
    assert num_numbers(bytes_made_again, one_within_another) == 1 + 10 + 10 + 21


def room(model, change=lambda loss_fn: loss_fn):
    """Bytes kept by one inner step and the query loss of images, and bytes made again."""
    images = jax.ShapeDtypeStruct((8, 20, 16, 16, 1), jnp.result_type(float))
    labels = jax.ShapeDtypeStruct((8, 20), jnp.result_type(int))
    examples = mj.Examples(inputs=images, targets=labels)
    meta_batch = mj.Task(support=examples, query=examples)
    start = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, 16, 1)))
    loss_fn = change(mj.losses.classification(model.apply))
    one = functools.partial(mj.inner_loop.query_loss, mj.maml(optax.sgd(0.1), 1), loss_fn)
    return bytes_kept(one, start, meta_batch), bytes_made_again(one, start, meta_batch)


@pytest.mark.parametrize("backend", ["gpu", "tpu"])
def test_off_a_cpu_all_that_a_network_needs_is_counted(backend, monkeypatch):
    """Oracle: XLA's own convolution, with nothing made again."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    ours = mj.models.Conv4(2, features=16)
    want, none = room(ours.clone(conv_general_dilated=jax.lax.conv_general_dilated))
    assert none == 0
    kept, made_again = room(ours)
    assert made_again == 0
    assert kept > 0.9 * want


def test_a_loss_made_again_is_counted_whole():
    """Oracle: the same loss with nothing made again."""
    model = mj.models.Conv4(2, features=16, statistics="outputs")
    want, _ = room(model)
    kept, made_again = room(model, jax.checkpoint)
    assert kept < 0.2 * want
    assert 0.5 * want < kept + made_again < want


def test_mixed_mode_keeps_less_at_many_steps():
    """Of 50 inner steps it keeps the parameters, and reverse mode the activations too."""
    model = mj.models.Mlp(features=(40, 40, 1))
    start = model.init(jax.random.key(0), jnp.zeros((1, 1)))
    meta_batch = mj.meta_batch(mj.data.sinusoid(), jax.random.key(0), 2)
    kept = {}
    for mode in ("reverse", "mixed"):
        inner = mj.maml(optax.sgd(0.01), 50, differentiate=mode)
        loss_fn = mj.losses.regression(model.apply)
        one = functools.partial(mj.inner_loop.task_loss, inner, loss_fn)
        kept[mode] = bytes_kept(one, start, meta_batch)
    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(start))
    assert 50 * num_bytes < kept["mixed"] < 60 * num_bytes
    assert kept["reverse"] > 1.5 * kept["mixed"]
