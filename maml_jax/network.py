"""From a configuration to what needs no data: model, loss, inner loop, outer step."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from maml_jax import gains, losses, models
from maml_jax.aggregation.named import from_text
from maml_jax.gradients import traced_once
from maml_jax.inner_loop import InnerLoop, MetaParams, query_loss
from maml_jax.layout import TaskAxis
from maml_jax.learned_rates import lslr, meta_sgd
from maml_jax.maml_family import anil, boil, fomaml, maml, reptile
from maml_jax.outer_state import OuterStep
from maml_jax.outer_step import make_outer_step
from maml_jax.recipes import Config
from maml_jax.tasks import Params, Task

_SGD_LOOPS = {"maml": maml, "fomaml": fomaml, "anil": anil, "boil": boil, "reptile": reptile}
_RATE_LOOPS = {"meta_sgd": meta_sgd, "lslr": lslr}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """The part of a configuration that needs no data.

    Attributes:
      apply_fn: the model, `(params, inputs, mask) -> predictions`.
      loss_fn: the loss of one set of examples.
      inner: the inner loop.
      params: initial parameters.
    """

    apply_fn: losses.ApplyFn
    loss_fn: losses.LossFn
    inner: InnerLoop
    params: Params

    def query_loss(self, params: MetaParams, task: Task) -> tuple[jax.Array, dict]:
        """Gives the query loss of one task after adaptation, and its metrics."""
        return query_loss(self.inner, self.loss_fn, params, task)


def assemble_network(config: Config) -> Network:
    """Builds model and inner loop of a configuration; reads no data.

    Args:
      config: what to train.

    Returns:
      The network, with parameters drawn from the configuration's seed.

    Raises:
      ValueError: if the model is not for the data set.

    Example:
      >>> from maml_jax.network import assemble_network
      >>> from maml_jax.recipes import PRESETS
      >>> network = assemble_network(PRESETS["omniglot-5way-1shot-finn2017"])
      >>> network.params["params"]["head"]["kernel"].shape
      (64, 5)
    """
    model = _model(config)
    loss_of = losses.regression if config.is_regression else losses.classification
    key = jax.random.fold_in(jax.random.key(config.seed), 0)
    return Network(
        apply_fn=model.apply,
        loss_fn=traced_once(loss_of(model.apply)),
        inner=_inner(config),
        params=jax.jit(model.init)(key, jnp.zeros((1, *input_shape(config)))),
    )


def assemble_outer_step(
    config: Config, network: Network, *, task_axis: TaskAxis = "auto", mesh: Mesh | None = None
) -> OuterStep:
    """Builds the outer step of a configuration.

    Args:
      config: what to train.
      network: what `assemble_network` gave.
      task_axis: as in `make_outer_step`.
      mesh: as in `make_outer_step`.

    Returns:
      The outer step.
    """
    return make_outer_step(
        network.loss_fn,
        network.inner,
        _optimizer(config),
        aggregation=from_text(config.aggregation),
        gain=None if config.gain == "none" else getattr(gains, config.gain)(),
        task_axis=task_axis,
        mesh=mesh,
        on_nonfinite=config.on_nonfinite,
    )


def input_shape(config: Config) -> tuple[int, ...]:
    """Gives the shape of one example of a configuration's data set.

    Args:
      config: what to train.

    Returns:
      `(1,)` for the sinusoid, `(H, W, C)` for images.
    """
    if config.is_regression:
        return (1,)
    size = 32 if config.dataset in ("cifar_fs", "fc100") else config.image_size
    grey = config.dataset in ("glyphs", "omniglot")
    grey |= config.dataset == "image_folder" and not config.colour
    return (size, size, 1 if grey else 3)


def _model(config: Config) -> Any:
    if config.is_regression != (config.model == "mlp"):
        raise ValueError(
            "model mlp is for the sinusoid, and the others for images, got model "
            f"{config.model!r} with dataset {config.dataset!r}."
        )
    if config.model == "mlp":
        if config.activations != "float32":
            raise ValueError(
                f"activations of model mlp are float32, got {config.activations}; leave it out."
            )
        return models.Mlp(features=(config.features, config.features, 1))
    dtype = jnp.bfloat16 if config.activations == "bfloat16" else None
    if config.model == "resnet12":
        return models.ResNet12(num_classes=config.way, dtype=dtype)
    return models.Conv4(
        num_classes=config.way,
        features=config.features,
        pooling=config.model == "conv4_pool",
        dtype=dtype,
    )


def _inner(config: Config) -> InnerLoop:
    if config.inner == "reptile" and config.differentiate != "reverse":
        raise ValueError(
            f"reptile has no second derivative, got differentiate={config.differentiate!r}; leave "
            "it out."
        )
    options = {} if config.inner == "reptile" else {"differentiate": config.differentiate}
    if config.inner in _RATE_LOOPS:
        return _RATE_LOOPS[config.inner](
            config.inner_steps, learning_rate=config.inner_learning_rate, **options
        )
    sgd = optax.sgd(config.inner_learning_rate)
    return _SGD_LOOPS[config.inner](sgd, config.inner_steps, **options)


def _optimizer(config: Config) -> optax.GradientTransformation:
    make = optax.sgd if config.inner == "reptile" else optax.adam
    rate = config.outer_learning_rate
    if config.outer_decay == "cosine":
        rate = optax.cosine_decay_schedule(rate, config.outer_steps)
    optimizer = make(rate)
    if config.clip == 0:
        return optimizer
    return optax.chain(optax.clip_by_global_norm(config.clip), optimizer)
