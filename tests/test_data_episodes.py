"""Episodes from a made-up set of classes in which every image says what it is.

Image (c, e) has pixel values from which class c and example e are read back exactly.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maml_jax.data import ImageClasses, Splits, episodes, nearest_neighbour_accuracy
from maml_jax.data.classes import select
from maml_jax.tasks import Examples, Task

COUNTS = np.array([6, 4, 5, 6, 4, 6, 5])


def numbered_classes(height=3, width=3, counts=COUNTS, **settings):
    """Pixel (0, 0) is the class, (0, 1) the example; the padding is 255."""
    images = np.full((len(counts), max(counts), height, width, 1), 7, np.uint8)
    images[:, :, 0, 0, 0] = np.arange(len(counts))[:, None]
    images[:, :, 0, 1, 0] = np.arange(max(counts))[None, :]
    for c, count in enumerate(counts):
        images[c, count:] = 255
    return ImageClasses(
        images=images,
        counts=np.asarray(counts),
        class_names=tuple(f"class{c}" for c in range(len(counts))),
        groups=("made-up",) * len(counts),
        **settings,
    )


def draw(sampler, num_tasks, seed=0):
    return jax.jit(jax.vmap(sampler))(jax.random.split(jax.random.key(seed), num_tasks))


def numbers(inputs):
    """Class and example of each drawn image."""
    pixels = np.rint(np.asarray(inputs) * 255.0).astype(int)
    return pixels[..., 0, 0, 0], pixels[..., 0, 1, 0]


def test_episode_is_drawn_without_replacement():
    """Oracle: the numbers in the images; counts are ragged, and padding is never drawn."""
    task = draw(episodes(numbered_classes(), way=5, shot=1, query_shot=3), 300)
    assert task.support.inputs.shape == (300, 5, 3, 3, 1)
    assert task.query.inputs.shape == (300, 15, 3, 3, 1)
    assert task.support.inputs.dtype == jnp.float32
    assert task.query.targets.dtype == jnp.int32
    np.testing.assert_array_equal(task.support.targets[0], np.arange(5))
    np.testing.assert_array_equal(task.query.targets[0], np.repeat(np.arange(5), 3))
    classes, support = numbers(task.support.inputs)
    query_classes, query = numbers(task.query.inputs)
    assert all(len(set(row)) == 5 for row in classes)
    np.testing.assert_array_equal(query_classes, np.repeat(classes, 3, axis=1))
    drawn = np.concatenate([support[..., None], query.reshape(300, 5, 3)], axis=-1)
    assert all(len(set(row)) == 4 for row in drawn.reshape(-1, 4))
    assert np.all(drawn < COUNTS[classes][..., None])


def test_labels_and_examples_are_uniform():
    """Oracle: chi-square bounds (99.99%) of class by label, and of example by class."""
    num_tasks = 4000
    task = draw(episodes(numbered_classes(), way=3, shot=1, query_shot=1), num_tasks, seed=5)
    classes, support = numbers(task.support.inputs)
    for label in range(3):
        observed = np.bincount(classes[:, label], minlength=7)
        expected = num_tasks / 7
        assert np.sum((observed - expected) ** 2 / expected) < 27.9  # 6 degrees of freedom
    for c, count in enumerate(COUNTS):
        observed = np.bincount(support[classes == c], minlength=count)
        expected = observed.sum() / count
        assert len(observed) == count
        assert np.sum((observed - expected) ** 2 / expected) < 27.9  # at most 5


def test_all_classes_and_all_examples_can_be_used():
    """Special case: way = C is a permutation; shot + query_shot = E uses every image."""
    classes = numbered_classes(counts=np.full(4, 3))
    task = draw(episodes(classes, way=4, shot=1, query_shot=2), 20)
    chosen, support = numbers(task.support.inputs)
    _, query = numbers(task.query.inputs)
    assert all(sorted(row) == [0, 1, 2, 3] for row in chosen)
    assert len({tuple(row) for row in chosen}) > 5
    together = np.concatenate([support[..., None], query.reshape(20, 4, 2)], axis=-1)
    assert np.all(np.sort(together, axis=-1) == np.arange(3))


def test_rotations_are_quarter_turns_of_distinct_classes():
    """Oracle: np.rot90 of the class; its four turns come up as different classes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 1, 5, 5, 1)).astype(np.uint8).repeat(2, axis=1)
    classes = ImageClasses(
        images=images, counts=np.full(2, 2), class_names=("a", "b"), groups=("", "")
    )
    sampler = episodes(classes, way=8, shot=1, query_shot=1, rotations=True)
    task = draw(sampler, 5)
    expected = {np.rot90(image[0, ..., 0], k).tobytes() for image in images for k in range(4)}
    for support, query in zip(task.support.inputs, task.query.inputs, strict=True):
        seen = np.rint(np.asarray(support[..., 0]) * 255.0).astype(np.uint8)
        assert {image.tobytes() for image in seen} == expected
        np.testing.assert_array_equal(support, query)


def test_normalisation_is_per_channel():
    """Oracle: (image / 255 - mean) / std in NumPy; ink on paper becomes 1 on 0."""
    colours = np.array([0, 51, 255], np.uint8)
    images = np.broadcast_to(colours, (1, 2, 2, 2, 3)).copy()
    classes = ImageClasses(
        images=images,
        counts=np.array([2]),
        class_names=("a",),
        groups=("",),
        mean=(1.0, 0.5, 0.25),
        std=(-1.0, 0.5, 0.75),
    )
    task = episodes(classes, way=1, shot=1, query_shot=1)(jax.random.key(0))
    np.testing.assert_allclose(task.support.inputs[0, 0, 0], [1.0, -0.6, 1.0], rtol=1e-6)


def test_images_are_leaves_and_equal_settings_compile_once():
    """Oracle: the sampler's leaves, and a count of traces."""
    traces = []

    def trace(sampler, key):
        traces.append(1)
        return sampler(key)

    compiled = jax.jit(trace)
    classes = numbered_classes()
    one = episodes(classes, way=5, shot=1, query_shot=2)
    two = episodes(classes, way=5, shot=1, query_shot=2)
    assert {leaf.shape for leaf in jax.tree.leaves(one)} == {(7, 6, 3, 3, 1), (7,), (1,)}
    first = compiled(one, jax.random.key(0))
    second = compiled(two, jax.random.key(0))
    assert len(traces) == 1
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"way": 8}, "8-way asked, but the split has 7 classes"),
        ({"way": 29, "rotations": True}, "29-way asked, but the split has 28 classes"),
        ({"way": 0}, "way must be an integer of at least 1, got 0"),
        ({"shot": 1.0}, r"shot must be an integer of at least 1, got 1\.0"),
        ({"query_shot": 0}, "query_shot must be an integer of at least 1, got 0"),
        ({"shot": 2, "query_shot": 3}, r"2 \+ 3 asked, but class made-up/class1 has 4"),
    ],
)
def test_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        episodes(numbered_classes(), **{"way": 2, "shot": 1, "query_shot": 1, **settings})


def test_rotations_of_oblong_images_are_refused():
    with pytest.raises(ValueError, match="rotations needs square images, got 3 x 4"):
        episodes(numbered_classes(width=4), way=2, shot=1, query_shot=1, rotations=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images": np.zeros((2, 1, 2, 2, 1))}, r"images must be uint8 .*, got float64"),
        ({"images": np.zeros((2, 0, 2, 2, 1), np.uint8)}, r"none of them 0, got uint8 \[2, 0"),
        ({"counts": np.array([1])}, "counts must have one entry per class, got 1 for 2"),
        ({"groups": ("", "", "")}, "groups must have one entry per class, got 3 for 2"),
        ({"counts": np.array([1, 2])}, r"counts must lie in \[1, 1\], got 1 to 2"),
        ({"std": (0.0,)}, r"std no 0, got \(0\.0,\) and \(0\.0,\)"),
        ({"mean": (0.0, 0.0)}, r"one number per channel \(1\)"),
    ],
)
def test_image_classes_check_themselves(settings, message):
    good = {
        "images": np.zeros((2, 1, 2, 2, 1), np.uint8),
        "counts": np.array([1, 1]),
        "class_names": ("a", "b"),
        "groups": ("", ""),
    }
    with pytest.raises(ValueError, match=message):
        ImageClasses(**{**good, **settings})


def test_splits_refuse_a_shared_class():
    classes = numbered_classes()
    with pytest.raises(ValueError, match=r"made-up/class3 \(meta_train and meta_test\)"):
        Splits(
            meta_train=select(classes, [0, 3]),
            meta_validation=select(classes, [1]),
            meta_test=select(classes, [2, 3]),
        )


def test_nearest_neighbour_accuracy():
    """Oracle: distances worked out by hand; a masked example neither votes nor counts."""
    support = Examples(inputs=jnp.array([[[0.0]], [[1.0]], [[0.5]]]), targets=jnp.arange(3))
    query = Examples(inputs=jnp.array([[[0.1]], [[0.6]], [[2.0]]]), targets=jnp.array([0, 1, 0]))
    assert nearest_neighbour_accuracy(Task(support=support, query=query)) == pytest.approx(1 / 3)
    masked = Task(
        support=Examples(
            inputs=support.inputs, targets=support.targets, mask=jnp.array([True, True, False])
        ),
        query=Examples(
            inputs=query.inputs, targets=query.targets, mask=jnp.array([True, True, False])
        ),
    )
    assert nearest_neighbour_accuracy(masked) == 1.0
