"""Groups of tasks: what they share, what they do not, and that any number of devices agrees."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maml_jax as mj
from maml_jax.tasks import draw


def sampler(group_key, key):
    """A task whose targets are a level common to the group, its inputs its own."""
    level = jax.random.normal(group_key)
    inputs = jax.random.normal(key, (4, 1))
    examples = mj.Examples(inputs=inputs, targets=jnp.full((4, 1), level))
    return mj.Task(support=examples, query=examples)


def grouped(tasks_per_group):
    return mj.Grouped(sampler=jax.tree_util.Partial(sampler), tasks_per_group=tasks_per_group)


def alphabets(counts=(6, 3, 5)):
    """Classes in groups; every pixel of class c is c, so that a task shows its classes."""
    groups = [f"alphabet {i}" for i, count in enumerate(counts) for _ in range(count)]
    num_classes = len(groups)
    images = np.arange(num_classes, dtype=np.uint8)[:, None, None, None, None]
    return mj.data.ImageClasses(
        images=np.broadcast_to(images, (num_classes, 4, 2, 2, 1)).copy(),
        counts=np.full(num_classes, 4),
        class_names=tuple(str(i) for i in range(num_classes)),
        groups=tuple(groups),
        std=(1 / 255,),
    )


def test_tasks_of_a_group_share_the_group_key_and_nothing_else():
    tasks = mj.meta_batch(grouped(2), jax.random.key(0), 6)
    levels = np.asarray(tasks.query.targets)[:, 0, 0]
    assert np.unique(levels).size == 3
    np.testing.assert_array_equal(levels[0::2], levels[1::2])
    assert np.unique(np.asarray(tasks.query.inputs)).size == 24
    np.testing.assert_array_equal(tasks.task_id, [0, 0, 1, 1, 2, 2])


def test_a_task_does_not_depend_on_which_others_are_drawn():
    """So devices may draw their own."""
    key = jax.random.key(3)
    whole = draw(grouped(2), key, jnp.arange(6))
    part = draw(grouped(2), key, jnp.arange(3, 6))
    np.testing.assert_array_equal(whole.query.targets[3:], part.query.targets)
    np.testing.assert_array_equal(whole.query.inputs[3:], part.query.inputs)


def test_outer_steps_draw_groups_on_any_number_of_devices(tolerance):
    def loss_fn(params, examples):
        return jnp.mean((examples.inputs * params - examples.targets) ** 2)

    results = []
    for devices in (1, 2):
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("tasks",))
        outer = mj.make_outer_step(loss_fn, mj.maml(optax.sgd(0.1), 1), optax.sgd(0.1), mesh=mesh)
        state = outer.init(jnp.zeros(()))
        state, _ = mj.run_outer_steps(
            outer, grouped(2), state, jax.random.key(1), num_steps=3, meta_batch_size=4
        )
        results.append(float(state.params))
    np.testing.assert_allclose(*results, rtol=100 * tolerance)
    assert results[0] != 0


def test_evaluation_takes_each_task_from_a_group_of_its_own():
    """Otherwise its interval would be of tasks that are not independent."""

    def loss_fn(params, examples):
        return jnp.mean(examples.targets) + 0 * params

    inner = mj.maml(optax.sgd(0.1), 1)
    results = [
        mj.evaluate(loss_fn, inner, jnp.zeros(()), grouped(n), key=0, num_tasks=64) for n in (1, 32)
    ]
    assert results[0].means == results[1].means
    assert results[1].half_width > 0.1  # Of levels with variance 1: about 1.96 / 8.


def test_classes_of_a_task_are_of_one_group_and_groups_are_shared():
    """Groups with too few classes are left out; ids number those that are not."""
    sampler = mj.data.grouped_episodes(alphabets(), way=4, shot=1, query_shot=2, tasks_per_group=3)
    tasks = mj.meta_batch(sampler, jax.random.key(0), 30)
    classes = np.asarray(tasks.support.inputs)[:, :, 0, 0, 0].round().astype(int)
    ids = np.asarray(tasks.task_id)
    assert set(ids) == {0, 1}
    for row, task_id in zip(classes, ids, strict=True):
        assert np.unique(row).size == 4
        assert set(row) <= (set(range(6)) if task_id == 0 else set(range(9, 14)))
    np.testing.assert_array_equal(ids.reshape(10, 3), np.repeat(ids[::3, None], 3, axis=1))


def test_one_task_is_distributed_alike_whatever_shares_its_group():
    """The same first task for the same key: only what goes with it changes."""
    first = []
    for count in (1, 5):
        sampler = mj.data.grouped_episodes(
            alphabets(), way=2, shot=1, query_shot=1, tasks_per_group=count
        )
        tasks = mj.meta_batch(sampler, jax.random.key(7), 5)
        first.append(np.asarray(tasks.query.inputs)[0])
    np.testing.assert_array_equal(*first)


ERRORS = {
    "no large group": (
        lambda: mj.data.grouped_episodes(
            alphabets(), way=7, shot=1, query_shot=1, tasks_per_group=1
        ),
        ValueError,
        "7-way asked, but no group has more than 6 classes",
    ),
    "tasks per group": (
        lambda: mj.data.grouped_episodes(
            alphabets(), way=2, shot=1, query_shot=1, tasks_per_group=0
        ),
        ValueError,
        "tasks_per_group must be",
    ),
    "no tasks per group": (
        lambda: mj.evaluate(
            lambda p, e: p, mj.maml(optax.sgd(0.1), 1), jnp.zeros(()), grouped(0), key=0
        ),
        ValueError,
        "tasks_per_group must be at least 1, got 0",
    ),
}


@pytest.mark.parametrize(("call", "kind", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
