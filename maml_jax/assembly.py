"""From a configuration to what the training loop needs: data, model, loops."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from maml_jax import data, layout, losses, placement
from maml_jax.diagnosis import Diagnosis, diagnose
from maml_jax.evaluation import Evaluation, evaluate
from maml_jax.inner_loop import InnerLoop, MetaParams
from maml_jax.network import Network, assemble_network, assemble_outer_step
from maml_jax.outer_state import OuterState, OuterStep
from maml_jax.recipes import Config
from maml_jax.tasks import Params, Sampler, TaskSampler, draw_one, meta_batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """What a configuration means, ready to run.

    Attributes:
      config: the configuration.
      apply_fn: the model, `(params, inputs, mask) -> predictions`.
      loss_fn: the loss of one set of examples.
      inner: the inner loop.
      outer: the outer step.
      params: initial parameters.
      meta_train: sampler of training tasks.
      meta_validation: sampler of tasks from classes held out for choices.
      meta_test: sampler of tasks from classes never used for training or choices.
    """

    config: Config
    apply_fn: losses.ApplyFn
    loss_fn: losses.LossFn
    inner: InnerLoop
    outer: OuterStep
    params: Params
    meta_train: Sampler
    meta_validation: Sampler
    meta_test: TaskSampler

    def key(self, use: str) -> jax.Array:
        """Gives the random key of one use, such as "train"."""
        uses = ("params", "train", "validation", "test", "diagnosis")
        return jax.random.fold_in(jax.random.key(self.config.seed), uses.index(use))

    def evaluate(self, params: MetaParams, use: str, **changes: Any) -> Evaluation:
        """Evaluates meta-parameters on "validation" or "test" tasks by the protocol.

        Args:
          params: the meta-parameters.
          use: "validation" or "test".
          **changes: protocol settings that differ from the configuration's:
            `num_tasks`, `num_steps`, `transductive`.

        Returns:
          The evaluation.
        """
        config = self.config
        settings = {
            "num_tasks": config.validation_tasks if use == "validation" else config.test_tasks,
            "num_steps": config.test_inner_steps,
            "transductive": config.transductive,
            **changes,
        }
        sampler = self.meta_validation if use == "validation" else self.meta_test
        settings["mesh"] = self.outer.mesh
        result = evaluate(self.loss_fn, self.inner, params, sampler, self.key(use), **settings)
        return dataclasses.replace(result, seed=str(config.seed))

    def diagnose(self, state: OuterState) -> Diagnosis:
        """Measures how the gradients of training tasks relate at a state.

        Args:
          state: of the outer step.

        Returns:
          The diagnosis, with the same tasks at every call.
        """
        key, size = self.key("diagnosis"), max(self.config.meta_batch_size, 2)
        return diagnose(self.outer, state, self.meta_train, key, meta_batch_size=size)


def mesh_for(config: Config, network: Network, tasks: Any) -> Mesh | None:
    """Chooses the devices that share the tasks of a configuration.

    Args:
      config: what to train.
      network: what `assemble_network` gave.
      tasks: a meta-batch, or its shapes.

    Returns:
      The mesh, or None for the default device.
    """
    params = network.inner.init(network.params)
    return layout.mesh_for(network.query_loss, params, tasks, config.meta_batch_size)


def assemble(config: Config) -> Problem:
    """Loads the data and builds model, inner loop and outer step of a configuration.

    Args:
      config: what to train.

    Returns:
      The problem.

    Raises:
      FileNotFoundError: if the data set is not prepared, with the command that does it.
      ValueError: if the configuration asks for more than the data set has.

    Example:
      >>> import dataclasses
      >>> from maml_jax.assembly import assemble
      >>> from maml_jax.recipes import PRESETS
      >>> problem = assemble(PRESETS["sinusoid-10shot-finn2017"])
      >>> problem.params["params"]["head"]["kernel"].shape
      (40, 1)
    """
    samplers = _samplers(config)
    network = assemble_network(config)
    shapes = jax.eval_shape(lambda: meta_batch(samplers["meta_train"], jax.random.key(0), 1))
    mesh = mesh_for(config, network, shapes)
    outer = assemble_outer_step(config, network, mesh=mesh)
    return Problem(
        config=config,
        apply_fn=network.apply_fn,
        loss_fn=network.loss_fn,
        inner=network.inner,
        outer=outer,
        params=network.params,
        **placement.replicate(samplers, mesh),
    )


def pixel_baseline(problem: Problem, *, num_tasks: int) -> float:
    """Measures the nearest neighbour in pixels on the test tasks of a problem.

    Args:
      problem: a classification problem.
      num_tasks: how many of its test tasks; the same as `problem.evaluate` sees.

    Returns:
      The mean accuracy, in [0, 1].
    """
    key = problem.key("test")

    def one(sampler, index):
        return data.nearest_neighbour_accuracy(draw_one(sampler, key, index))

    def all_tasks(sampler):
        return jax.lax.map(lambda i: one(sampler, i), jnp.arange(num_tasks), batch_size=50)

    return float(jax.jit(all_tasks)(problem.meta_test).mean())


def _samplers(config: Config) -> dict[str, Sampler]:
    names = ("meta_train", "meta_validation", "meta_test")
    if config.is_regression:
        if config.tasks_per_group:
            raise ValueError(
                "tasks_per_group is for images, whose classes have groups, got "
                f"{config.tasks_per_group} with dataset {config.dataset!r}; leave it out."
            )
        train = data.sinusoid(shot=config.shot, query_shot=config.query_shot)
        held_out = data.sinusoid(shot=config.shot, query_shot=config.test_query_shot)
        return dict(zip(names, (train, held_out, held_out), strict=True))
    splits = _LOADERS[config.dataset](config)
    return {name: _episodes(config, getattr(splits, name), name) for name in names}


def _episodes(config: Config, classes: data.ImageClasses, split: str) -> Sampler:
    """Makes the sampler of one split; only training tasks share their groups."""
    training = split == "meta_train"
    options = {
        "way": config.way,
        "shot": config.shot,
        "query_shot": config.query_shot if training else config.test_query_shot,
        "rotations": config.rotations,
    }
    if config.tasks_per_group == 0:
        return data.episodes(classes, **options)
    shared = config.tasks_per_group if training else 1
    return data.grouped_episodes(classes, **options, tasks_per_group=shared)


def _image_folder(config: Config) -> data.Splits:
    if config.data_dir is None:
        raise ValueError(
            "dataset image_folder needs --data-dir, the folder that holds one folder per class."
        )
    channels = 3 if config.colour else 1
    return data.image_folder(config.data_dir, image_size=config.image_size, channels=channels)


_LOADERS: dict[str, Callable[[Config], data.Splits]] = {
    "glyphs": lambda config: data.glyphs(image_size=config.image_size),
    "omniglot": lambda config: data.omniglot(
        data_dir=config.data_dir, image_size=config.image_size
    ),
    "cifar_fs": lambda config: data.cifar_fs(data_dir=config.data_dir),
    "fc100": lambda config: data.fc100(data_dir=config.data_dir),
    "image_folder": _image_folder,
}


def example_tasks(problem: Problem, *, num_tasks: int) -> Any:
    """Draws the first test tasks, for pictures.

    Args:
      problem: the problem.
      num_tasks: how many.

    Returns:
      A meta-batch of the tasks that `problem.evaluate(..., "test")` sees first.
    """
    return meta_batch(problem.meta_test, problem.key("test"), num_tasks)
