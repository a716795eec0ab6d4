"""From a configuration to the network: that each setting arrives where it acts."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import maml_jax as mj
from maml_jax import bench
from maml_jax.assembly import assemble
from maml_jax.network import assemble_network
from maml_jax.recipes import PRESETS, Config
from maml_jax.residuals import bytes_kept

pytestmark = pytest.mark.slow

GLYPHS = dataclasses.replace(PRESETS["glyphs-5way-1shot"], features=4, meta_batch_size=2)


def traced_query_loss(config):
    network = assemble_network(config)
    tasks = jax.eval_shape(lambda: bench._noise(config, jax.random.key(0)))
    task = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), tasks)
    params = network.inner.init(network.params)
    return str(jax.make_jaxpr(network.query_loss)(params, task)), network


@pytest.mark.parametrize("model", ["conv4", "conv4_pool", "resnet12"])
def test_activations_are_of_the_dtype_and_parameters_are_not(model):
    """Oracle: the traced convolutions; with float32 no bfloat16 is anywhere."""
    config = dataclasses.replace(GLYPHS, model=model)
    text, _ = traced_query_loss(config)
    assert "bf16" not in text
    text, network = traced_query_loss(dataclasses.replace(config, activations="bfloat16"))
    assert set(re.findall(r"(\w+)\[(?:\d+,){4}\d+\] = bilinear_conv", text)) == {"bf16"}
    assert {leaf.dtype for leaf in jax.tree.leaves(network.params)} == {jnp.zeros(()).dtype}


@pytest.mark.parametrize("inner", ["maml", "anil", "boil", "meta_sgd", "lslr"])
def test_mixed_mode_reaches_the_inner_loop(inner):
    config = Config(dataset="sinusoid", model="mlp", inner=inner, inner_learning_rate=0.01)
    assert "custom_vjp" not in traced_query_loss(config)[0]
    assert "custom_vjp" in traced_query_loss(dataclasses.replace(config, differentiate="mixed"))[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inner": "reptile", "differentiate": "mixed"}, "reptile has no second derivative"),
        ({"activations": "bfloat16"}, "activations of model mlp are float32, got bfloat16"),
    ],
)
def test_settings_that_could_do_nothing_are_refused(settings, message):
    config = Config(dataset="sinusoid", model="mlp", inner_learning_rate=0.01, **settings)
    with pytest.raises(ValueError, match=message):
        assemble_network(config)


def test_reptile_counts_the_activations_of_its_inner_loop():
    """Its own loss would keep no more than the parameters, and all tasks would run at once."""
    kept = {}
    for inner in ("reptile", "fomaml"):
        network = assemble_network(dataclasses.replace(GLYPHS, inner=inner))
        tasks = jax.eval_shape(lambda: bench._noise(GLYPHS, jax.random.key(0)))
        kept[inner] = bytes_kept(network.query_loss, network.params, tasks)
    assert kept["reptile"] == kept["fomaml"] > 10 * 4 * 2000


@pytest.mark.slow
@pytest.mark.parametrize("colour", [True, False])
def test_an_image_folder_fits_the_network_that_is_made_for_it(tmp_path, colour):
    """The query loss of a task drawn from the folder is computed, in colour and in grey."""
    rng = np.random.default_rng(0)
    for number in range(9):
        (tmp_path / f"class{number}").mkdir()
        for index in range(4):
            pixels = rng.integers(0, 256, (10, 12, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"class{number}" / f"{index}.png")
    config = dataclasses.replace(
        GLYPHS,
        dataset="image_folder",
        data_dir=str(tmp_path),
        colour=colour,
        image_size=16,
        way=2,
        query_shot=2,
        test_query_shot=2,
    )
    problem = assemble(config)
    tasks = mj.meta_batch(problem.meta_train, jax.random.key(0), 2)
    assert tasks.query.inputs.shape == (2, 4, 16, 16, 3 if colour else 1)
    state = problem.outer.init(problem.params)
    _, metrics = problem.outer.gradient(state, tasks)
    assert jnp.isfinite(metrics["query_loss"])
