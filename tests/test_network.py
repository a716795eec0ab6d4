"""From a configuration to the network: that each setting arrives where it acts."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest

from maml_jax import bench
from maml_jax.network import assemble_network
from maml_jax.recipes import PRESETS, Config

GLYPHS = dataclasses.replace(PRESETS["glyphs-5way-1shot"], features=4, meta_batch_size=2)


def traced_task_loss(config):
    network = assemble_network(config)
    tasks = jax.eval_shape(lambda: bench._noise(config, jax.random.key(0)))
    task = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), tasks)
    params = network.inner.init(network.params)
    return str(jax.make_jaxpr(network.task_loss)(params, task)), network


@pytest.mark.parametrize("model", ["conv4", "conv4_pool", "resnet12"])
def test_activations_are_of_the_dtype_and_parameters_are_not(model):
    """Oracle: the traced convolutions; with float32 no bfloat16 is anywhere."""
    config = dataclasses.replace(GLYPHS, model=model)
    text, _ = traced_task_loss(config)
    assert "bf16" not in text
    text, network = traced_task_loss(dataclasses.replace(config, activations="bfloat16"))
    assert set(re.findall(r"(\w+)\[(?:\d+,){4}\d+\] = bilinear_conv", text)) == {"bf16"}
    assert {leaf.dtype for leaf in jax.tree.leaves(network.params)} == {jnp.zeros(()).dtype}


@pytest.mark.parametrize("inner", ["maml", "anil", "boil", "meta_sgd", "lslr"])
def test_mixed_mode_reaches_the_inner_loop(inner):
    config = Config(dataset="sinusoid", model="mlp", inner=inner, inner_learning_rate=0.01)
    assert "custom_vjp" not in traced_task_loss(config)[0]
    assert "custom_vjp" in traced_task_loss(dataclasses.replace(config, differentiate="mixed"))[0]


def test_reptile_has_no_second_derivative_to_compute():
    config = Config(dataset="sinusoid", model="mlp", inner="reptile", inner_learning_rate=0.01)
    texts = [
        traced_task_loss(dataclasses.replace(config, differentiate=mode))[0]
        for mode in ("reverse", "mixed")
    ]
    assert texts[0] == texts[1]
