"""The workloads that every benchmark measures, and their naive JAX form.

    W1  Omniglot: 5-way, 1 support and 15 query images a class, 28x28x1, Conv4 with 64
        filters and stride 2, 1 inner step, 32 tasks
    W2  mini-ImageNet: as W1, but 84x84x3, 32 filters, max-pooling, 5 inner steps, 4 tasks
    W3  sinusoid: 10 support and 10 query points, network 1-40-40-1, 1 inner step, 25 tasks
    W4  as W2, but ResNet12, 1 inner step, 2 tasks

3x3 convolutions are padded by one pixel on each side, as PyTorch does it, so that every peer
computes the same function. Images are noise: the work does not depend on what is in them.
"Smooth" variants have softplus and mean-pooling in place of ReLU and max-pooling, so that
two correct programs agree in second order too; a kink or a tie may fall to either side.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import maml_jax as mj
from maml_jax.convolution import convolution
from maml_jax.gradients import loss_and_metrics
from maml_jax.pooling import mean_pool

MODES = {
    "reverse": {},
    "reverse, remat": {"remat": True},
    "mixed": {"differentiate": "mixed"},
    "first order": {"first_order": True},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """One workload, ready to run.

    Attributes:
      name: "W1", "W2", "W3" or "W4".
      loss_fn: the loss of one set of examples, by our convolution.
      naive_loss_fn: the same network with the convolution of `jax.lax` (W1, W2, W4; norm, pooling
        and head are ours there too), or with its matrix product (W3).
      params: initial parameters.
      tasks: a meta-batch.
      sampler: a sampler of such tasks.
      num_steps: inner steps.
      learning_rate: of the inner SGD.
      smooth: whether this is the smooth variant.
    """

    name: str
    loss_fn: Callable
    naive_loss_fn: Callable
    params: Any
    tasks: mj.Task
    sampler: Callable
    num_steps: int
    learning_rate: float
    smooth: bool = False

    @property
    def num_tasks(self) -> int:
        """Number of tasks of the meta-batch."""
        return len(self.tasks.support.targets)

    def inner(self, **options: Any) -> mj.InnerLoop:
        """Gives the inner loop."""
        return mj.maml(optax.sgd(self.learning_rate), self.num_steps, **options)

    def outer(self, **options: Any) -> mj.OuterStep:
        """Gives our outer step, with Adam."""
        inner = options.pop("inner", None) or self.inner()
        loss_fn = options.pop("loss_fn", self.loss_fn)
        return mj.make_outer_step(loss_fn, inner, optax.adam(1e-3), **options)


def make(
    name: str,
    *,
    num_tasks: int | None = None,
    way: int = 5,
    shot: int = 1,
    query_shot: int = 15,
    num_steps: int | None = None,
    smooth: bool = False,
    dtype: Any = None,
    statistics: str = "auto",
    seed: int = 0,
) -> Workload:
    """Makes a workload.

    Args:
      name: "W1", "W2", "W3" or "W4".
      num_tasks: tasks of the meta-batch; those of the workload by default.
      way: classes of a task (W1, W2).
      shot: support examples of a class (W1, W2).
      query_shot: query examples of a class (W1, W2).
      num_steps: inner steps; those of the workload by default.
      smooth: whether to have softplus and mean-pooling.
      dtype: of the activations (W1, W2); None is that of the parameters.
      statistics: as in `Conv4` (W1, W2, W4): "outputs" for what is made on a CPU for a TPU.
      seed: of parameters and tasks.

    Returns:
      The workload.
    """
    if name == "W3":
        return _sinusoid(num_tasks or 25, num_steps or 1, smooth, seed)
    default_tasks, size, model, default_steps, learning_rate = {
        "W1": (32, (28, 28, 1), mj.models.Conv4.omniglot(way), 1, 0.4),
        "W2": (4, (84, 84, 3), mj.models.Conv4.mini_imagenet(way), 5, 0.05),
        "W4": (2, (84, 84, 3), mj.models.ResNet12(way), 1, 0.05),
    }[name]
    if name != "W4":  # Of ResNet12, at stride 1, it is the same.
        model = model.clone(padding=((1, 1), (1, 1)))
    if smooth:  # Conv4 only.
        model = model.clone(activation=nn.softplus, pool=mean_pool)
    model = model.clone(dtype=dtype, statistics=statistics)
    losses = [
        mj.losses.classification(model.clone(conv_general_dilated=conv).apply)
        for conv in (convolution, jax.lax.conv_general_dilated)
    ]
    key = jax.random.key(seed)
    sampler = functools.partial(_noise, size=size, way=way, shot=shot, query_shot=query_shot)
    return Workload(
        name=name,
        loss_fn=losses[0],
        naive_loss_fn=losses[1],
        params=jax.jit(model.init)(jax.random.fold_in(key, 0), jnp.zeros((1, *size))),
        tasks=jax.jit(mj.meta_batch, static_argnums=(0, 2))(
            sampler, jax.random.fold_in(key, 1), num_tasks or default_tasks
        ),
        sampler=sampler,
        num_steps=num_steps or default_steps,
        learning_rate=learning_rate,
        smooth=smooth,
    )


def _noise(key: jax.Array, *, size, way: int, shot: int, query_shot: int) -> mj.Task:
    """Draws a task of noise whose classes differ in their mean."""
    means_key, support_key, query_key = jax.random.split(key, 3)
    means = jax.random.normal(means_key, (way, 1, *size))

    def examples(key, count):
        images = means + jax.random.normal(key, (way, count, *size))
        labels = jnp.repeat(jnp.arange(way), count)
        return mj.Examples(inputs=images.reshape(way * count, *size), targets=labels)

    return mj.Task(support=examples(support_key, shot), query=examples(query_key, query_shot))


def _sinusoid(num_tasks: int, num_steps: int, smooth: bool, seed: int) -> Workload:
    model = mj.models.Mlp(activation=nn.softplus if smooth else nn.relu)
    sampler = mj.data.sinusoid(shot=10, query_shot=10)
    key = jax.random.key(seed)
    return Workload(
        name="W3",
        loss_fn=mj.losses.regression(model.apply),
        naive_loss_fn=mj.losses.regression(model.clone(dot_general=jax.lax.dot_general).apply),
        params=jax.jit(model.init)(jax.random.fold_in(key, 0), jnp.zeros((1, 1))),
        tasks=mj.meta_batch(sampler, jax.random.fold_in(key, 1), num_tasks),
        sampler=sampler,
        num_steps=num_steps,
        learning_rate=0.01,
        smooth=smooth,
    )


def outer_gradient(name: str, num_tasks: int, num_steps: int, mode: str) -> tuple[Any, tuple]:
    """Makes our outer gradient of a workload, and its arguments.

    Args:
      name: the workload.
      num_tasks: tasks of the meta-batch.
      num_steps: inner steps.
      mode: how the inner loop is differentiated, one of `MODES`.

    Returns:
      What `jax.jit` gives, not yet traced, and what to call it with.
    """
    workload = make(name, num_tasks=num_tasks, num_steps=num_steps)
    outer = workload.outer(inner=workload.inner(**MODES[mode]), on_nonfinite="propagate")
    return jax.jit(outer.gradient), (outer.init(workload.params), workload.tasks)


def naive_gradient(workload: Workload) -> Callable[[Any, mj.Task], Any]:
    """Writes MAML in JAX as its tutorials do: `vmap` over tasks, `lax.conv`, mean of the losses.

    Args:
      workload: the workload.

    Returns:
      A compiled `(params, tasks) -> gradient`.
    """
    one = naive_task_loss(workload)

    @jax.jit
    def gradient(params, tasks):
        return jax.grad(lambda params: jax.vmap(one, (None, 0))(params, tasks).mean())(params)

    return gradient


def naive_loop(workload: Workload) -> Callable[[Any, mj.Task], Any]:
    """Writes MAML in JAX as a Python loop over tasks that calls a compiled function.

    Args:
      workload: the workload.

    Returns:
      `(params, tasks) -> gradient`.
    """
    grad = jax.jit(jax.grad(naive_task_loss(workload)))
    add = jax.jit(functools.partial(jax.tree.map, jnp.add))

    def loop(params, tasks):
        total = None
        for index in range(workload.num_tasks):
            task = jax.tree.map(lambda leaf, i=index: leaf[i], tasks)
            grads = grad(params, task)
            total = grads if total is None else add(total, grads)
        return jax.tree.map(lambda leaf: leaf / workload.num_tasks, total)

    return loop


def naive_task_loss(workload: Workload) -> Callable[[Any, mj.Task], jax.Array]:
    """Writes the loss after adaptation in plain JAX, without this library's inner loop.

    Args:
      workload: the workload.

    Returns:
      `(params, task) -> loss`.
    """

    def loss(params, examples):
        return loss_and_metrics(workload.naive_loss_fn, params, examples)[0]

    def one(params, task):
        for _ in range(workload.num_steps):
            grads = jax.grad(loss)(params, task.support)
            params = jax.tree.map(lambda p, g: p - workload.learning_rate * g, params, grads)
        return loss(params, task.query)

    return one


def arrays(workload: Workload) -> dict[str, np.ndarray]:
    """Gives parameters and tasks as named arrays, for programs that are not JAX.

    Args:
      workload: the workload.

    Returns:
      "params/PATH", "support/inputs", "support/targets", "query/inputs", "query/targets".
    """
    named = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(workload.params)
    }
    for part in ("support", "query"):
        examples = getattr(workload.tasks, part)
        named[f"{part}/inputs"] = np.asarray(examples.inputs)
        named[f"{part}/targets"] = np.asarray(examples.targets)
    return named
