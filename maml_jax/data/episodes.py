"""N-way K-shot episodes: tasks drawn from a set of image classes.

In shapes, `C` is the number of classes, `E` the most examples of a class, `H` and `W`
the height and width of an image.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from maml_jax.data._checks import check_count
from maml_jax.data.classes import ImageClasses
from maml_jax.tasks import Examples, Grouped, Task, TaskSampler


def episodes(
    classes: ImageClasses, *, way: int, shot: int, query_shot: int, rotations: bool = False
) -> TaskSampler:
    """Makes a sampler of `way`-way `shot`-shot classification tasks.

    A task draws `way` distinct classes, numbers them 0 to way - 1 at random, and draws
    `shot + query_shot` distinct examples of each: no image is in both support and query.

    Args:
      classes: where images come from; they are copied to the default device here, once.
      way: classes per task; static, at least 1.
      shot: support examples per class; static, at least 1.
      query_shot: query examples per class; static, at least 1.
      rotations: each class turned by 0, 90, 180 and 270 degrees counts as four classes,
        as is usual on Omniglot. Turned on the device; needs square images.

    Returns:
      A pure function `key -> Task` for one task, which consumes the key. Inputs are
      float32 `[way * shot, H, W, channels]` and `[way * query_shot, H, W, channels]`,
      normalised by the mean and std of `classes`; targets are int32, class by class.
      It is a pytree whose leaves are the images `[C, E, H, W, channels]` and their
      counts: pass it to a jitted function as an argument, and the images are not baked
      into the compiled program.

    Raises:
      ValueError: if there are too few classes, or too few examples of one of them, or a
        count is no integer of at least 1, or `rotations` is asked of oblong images.

    Example:
      >>> import jax, numpy as np
      >>> from maml_jax.data import ImageClasses, episodes
      >>> classes = ImageClasses(
      ...     images=np.zeros((8, 20, 28, 28, 1), np.uint8),
      ...     counts=np.full(8, 20),
      ...     class_names=tuple("abcdefgh"),
      ...     groups=("Latin",) * 8,
      ... )
      >>> task = episodes(classes, way=5, shot=1, query_shot=15)(jax.random.key(0))
      >>> task.support.inputs.shape, task.query.targets.shape
      ((5, 28, 28, 1), (75,))

    References:
      O. Vinyals, C. Blundell, T. Lillicrap, K. Kavukcuoglu, D. Wierstra, "Matching
      Networks for One Shot Learning", NeurIPS 2016, sections 3 and 4.1.
      https://arxiv.org/abs/1606.04080
    """
    _check(classes, way=way, shot=shot, query_shot=query_shot, rotations=rotations)
    available = classes.num_classes * (4 if rotations else 1)
    if way > available:
        raise ValueError(
            f"A task cannot have more classes than the split: {way}-way asked, but the "
            f"split has {available} classes."
        )
    episode = _Episode(way=way, shot=shot, query_shot=query_shot, rotations=bool(rotations))
    return jax.tree_util.Partial(episode, *_on_device(classes))


def grouped_episodes(
    classes: ImageClasses,
    *,
    way: int,
    shot: int,
    query_shot: int,
    tasks_per_group: int,
    rotations: bool = False,
) -> Grouped:
    """Makes a sampler of tasks whose classes all belong to one group, such as one alphabet.

    A group of tasks of a meta-batch shares the group of classes, drawn at random from those
    with enough classes. One task is distributed in the same way whatever `tasks_per_group` is:
    only how tasks of a meta-batch relate depends on it. The more share a group, the more their
    gradients are correlated.

    Args:
      classes: where images come from, with their groups; copied to the default device here.
      way: classes per task; static, at least 1. Groups with fewer are left out.
      shot: support examples per class; static, at least 1.
      query_shot: query examples per class; static, at least 1.
      tasks_per_group: tasks that share a group; static, at least 1, which makes tasks
        independent.
      rotations: as in `episodes`.

    Returns:
      A `maml_jax.Grouped` sampler of tasks as `episodes` makes them, with `task_id`, the number
      of the group of classes.

    Raises:
      ValueError: as `episodes`, or if no group has enough classes.

    Example:
      >>> import jax, numpy as np
      >>> import maml_jax as mj
      >>> classes = mj.data.ImageClasses(
      ...     images=np.zeros((8, 20, 28, 28, 1), np.uint8),
      ...     counts=np.full(8, 20),
      ...     class_names=tuple("abcdefgh"),
      ...     groups=("Latin",) * 4 + ("Greek",) * 4,
      ... )
      >>> sampler = mj.data.grouped_episodes(
      ...     classes, way=3, shot=1, query_shot=2, tasks_per_group=2
      ... )
      >>> tasks = mj.meta_batch(sampler, jax.random.key(0), 4)
      >>> bool(tasks.task_id[0] == tasks.task_id[1])
      True
    """
    _check(classes, way=way, shot=shot, query_shot=query_shot, rotations=rotations)
    check_count("tasks_per_group", tasks_per_group)
    turns = 4 if rotations else 1
    members = {}
    for index, name in enumerate(classes.groups):
        members.setdefault(name, []).append(index)
    large = [indices for indices in members.values() if turns * len(indices) >= way]
    if not large:
        most = max(len(indices) for indices in members.values())
        raise ValueError(
            f"A task's classes come from one group: {way}-way asked, but no group has more than "
            f"{turns * most} classes."
        )
    table = np.zeros((len(large), max(map(len, large))), np.int32)
    for row, indices in zip(table, large, strict=True):
        row[: len(indices)] = indices
    sizes = jnp.asarray([len(indices) for indices in large], jnp.int32)
    episode = _Episode(way=way, shot=shot, query_shot=query_shot, rotations=bool(rotations))
    sampler = jax.tree_util.Partial(
        _OfOneGroup(episode), jnp.asarray(table), sizes, *_on_device(classes)
    )
    return Grouped(sampler=sampler, tasks_per_group=tasks_per_group)


def _check(classes: ImageClasses, *, way: int, shot: int, query_shot: int, rotations: bool):
    for name, value in (("way", way), ("shot", shot), ("query_shot", query_shot)):
        check_count(name, value)
    height, width, _ = classes.image_shape
    if rotations and height != width:
        raise ValueError(f"rotations needs square images, got {height} x {width}.")
    fewest = int(np.argmin(classes.counts))
    if shot + query_shot > classes.counts[fewest]:
        raise ValueError(
            f"shot + query_shot must be at most the examples of each class: {shot} + "
            f"{query_shot} asked, but class {classes.groups[fewest]}/"
            f"{classes.class_names[fewest]} has {classes.counts[fewest]}."
        )


def _on_device(classes: ImageClasses) -> tuple[jax.Array, ...]:
    return (
        jnp.asarray(classes.images),
        jnp.asarray(classes.counts, jnp.int32),
        jnp.asarray(classes.mean, jnp.float32),
        jnp.asarray(classes.std, jnp.float32),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Episode:
    """Draws one episode: hashable by value, so that equal settings compile once."""

    way: int
    shot: int
    query_shot: int
    rotations: bool

    def __call__(
        self,
        images: jax.Array,
        counts: jax.Array,
        mean: jax.Array,
        std: jax.Array,
        key: jax.Array,
    ) -> Task:
        """Draws a task from `images` `[C, E, H, W, channels]`; the key is consumed."""
        members = jnp.arange(len(images))
        return self.draw(members, len(images), images, counts, mean, std, key)

    def draw(
        self,
        members: jax.Array,
        size: jax.Array | int,
        images: jax.Array,
        counts: jax.Array,
        mean: jax.Array,
        std: jax.Array,
        key: jax.Array,
    ) -> Task:
        """Draws a task of the first `size` of the classes `members` `[M]`."""
        classes_key, examples_key = jax.random.split(key)
        turns = 4 if self.rotations else 1
        wanted = self.shot + self.query_shot
        available = jnp.reshape(turns * jnp.asarray(size), (1,))
        chosen = _distinct(classes_key, available, turns * len(members), self.way)[0]
        class_index = members[chosen // turns]
        drawn = _distinct(examples_key, counts[class_index], images.shape[1], wanted)
        # Bytes are gathered first: only the images of this task become floats.
        picked = images[class_index[:, None], drawn]
        if self.rotations:
            picked = jax.vmap(_turn)(picked, chosen % turns)
        return Task(
            support=self._examples(picked[:, : self.shot], mean, std),
            query=self._examples(picked[:, self.shot :], mean, std),
        )

    def _examples(self, picked: jax.Array, mean: jax.Array, std: jax.Array) -> Examples:
        """Labels and normalises `picked` `[way, examples, H, W, channels]`."""
        way, count, *image_shape = picked.shape
        pixels = picked.reshape(way * count, *image_shape).astype(jnp.float32) / 255.0
        shape = (1, 1, 1, image_shape[-1])
        return Examples(
            inputs=(pixels - mean.reshape(shape)) / std.reshape(shape),
            targets=jnp.repeat(jnp.arange(way, dtype=jnp.int32), count),
        )


@dataclasses.dataclass(frozen=True)
class _OfOneGroup:
    """Draws one episode of the classes of one group; hashable by value, as `_Episode`."""

    episode: _Episode

    def __call__(
        self,
        table: jax.Array,
        sizes: jax.Array,
        images: jax.Array,
        counts: jax.Array,
        mean: jax.Array,
        std: jax.Array,
        group_key: jax.Array,
        key: jax.Array,
    ) -> Task:
        """Draws a task of a row of `table` `[G, M]`, of which `sizes` `[G]` are classes."""
        group = jax.random.randint(group_key, (), 0, len(sizes))
        task = self.episode.draw(table[group], sizes[group], images, counts, mean, std, key)
        return dataclasses.replace(task, task_id=group)


def _distinct(key: jax.Array, totals: jax.Array, largest: int, count: int) -> jax.Array:
    """Draws `count` distinct numbers below each of `totals` `[R]`, as `[R, count]`.

    The places of the largest of independent uniform numbers are a uniform draw without
    replacement, in random order. Places at or beyond a row's total are below all others.
    """
    scores = jax.random.uniform(key, (len(totals), largest), jnp.float32)
    valid = jnp.arange(largest)[None, :] < totals[:, None]
    return jax.lax.top_k(jnp.where(valid, scores, -1.0), count)[1]


def _turn(picked: jax.Array, quarter_turns: jax.Array) -> jax.Array:
    """Turns `[examples, H, W, channels]` anticlockwise by a traced number of quarters."""
    turned = [jnp.rot90(picked, k, axes=(1, 2)) for k in range(4)]
    return jnp.stack(turned)[quarter_turns]
