"""Glyphs: what is drawn, what is left out, and how hard it is."""

import functools
import sys

import jax
import numpy as np
import pytest

from maml_jax.data import _glyph_shapes as shapes
from maml_jax.data import episodes, glyphs, nearest_neighbour_accuracy
from maml_jax.data._writing_systems import WRITING_SYSTEMS
from maml_jax.data.glyphs import draw_glyphs

module = sys.modules["maml_jax.data.glyphs"]
FEW = ("Hebrew", "Ogham", "Greek")


@pytest.fixture(scope="module")
def all_glyphs(tmp_path_factory):
    """Every character, drawn four times, and the folder that it is kept in."""
    folder = tmp_path_factory.mktemp("glyphs")
    return glyphs(examples_per_class=4, cache_dir=folder), folder


@pytest.fixture
def only_few(monkeypatch):
    """Makes `glyphs` draw three writing systems; returns the list of its calls."""
    calls = []

    def draw(*arguments):
        calls.append(arguments)
        return draw_glyphs(*arguments, systems=FEW)

    monkeypatch.setattr(module, "draw_glyphs", draw)
    return calls


def test_splits_are_by_writing_system_and_large(all_glyphs):
    """Oracle: the table of writing systems; classes enough for 20-way tasks."""
    splits, _ = all_glyphs
    sizes = {"meta_train": 1000, "meta_validation": 120, "meta_test": 200}
    for split, least in sizes.items():
        classes = getattr(splits, split)
        assert set(classes.groups) <= set(WRITING_SYSTEMS[split])
        assert classes.num_classes >= least
        assert classes.images.shape[1:] == (4, 28, 28, 1)
        assert len(set(classes.class_names)) == classes.num_classes
        # Ink is there in every image, and paper is most of it.
        ink = 1.0 - classes.images.mean(axis=(2, 3, 4)) / 255.0
        assert ink.min() > 0.005
        assert ink.max() < 0.6
        assert classes.images.max() == 255


def test_nearest_neighbour_in_pixels_is_mediocre(all_glyphs):
    """Oracle: chance is 20%; Omniglot's 5-way 1-shot pixel baseline is near 45%."""
    sampler = episodes(all_glyphs[0].meta_test, way=5, shot=1, query_shot=3)
    draw = jax.jit(jax.vmap(lambda key: nearest_neighbour_accuracy(sampler(key))))
    accuracy = float(np.mean(draw(jax.random.split(jax.random.key(0), 150))))
    assert 0.36 < accuracy < 0.60


def test_look_alikes_are_in_one_split_only(all_glyphs):
    """Oracle: letters that are the same drawing in several scripts."""
    splits, _ = all_glyphs
    train = set(splits.meta_train.class_names)
    for alike in ("AΑА", "BΒВ", "OΟОՕ൦", "HΗН", "PΡР", "ꓕ⊥⟂"):
        assert len({f"U+{ord(c):04X}" for c in alike} & train) <= 1, alike
    everywhere = [*splits.meta_test.class_names, *splits.meta_validation.class_names]
    assert not train & set(everywhere)


def test_no_shape_resembles_one_of_another_split_even_when_turned():
    """Oracle: correlation of the shapes, pair by pair."""
    found = shapes.render_glyphs(FEW)
    base = found.ink[found.start[:-1]]
    soft = shapes._outlines(shapes.signed_distances(base))
    splits = np.array(found.splits)
    assert len(set(splits)) == 3
    for turns in range(4):
        turned = shapes._standardised(np.rot90(soft, turns, axes=(1, 2)))
        correlation = shapes._standardised(soft) @ turned.T
        across = splits[:, None] != splits[None, :]
        assert correlation[across].max() <= shapes._ALIKE_ACROSS
        if turns == 0:
            np.fill_diagonal(correlation, 0.0)
            assert correlation.max() <= shapes._ALIKE_IN_SPLIT


def test_signed_distances_of_a_square():
    """Oracle: distance to the nearest pixel of the other side, worked out by hand."""
    ink = np.zeros((1, 20, 20), np.uint8)
    ink[0, 5:15, 5:15] = 255
    distances = shapes.signed_distances(ink)[0]
    assert distances.dtype == np.float32
    assert (distances[10, 4], distances[10, 5]) == (1.0, -1.0)
    np.testing.assert_allclose(np.diff(distances[10, 1:5]), -1.0, atol=1e-6)
    np.testing.assert_allclose(np.diff(distances[10, 5:9]), -1.0, atol=1e-6)
    np.testing.assert_allclose(distances[2, 1] ** 2, 3**2 + 4**2, atol=1e-4)
    np.testing.assert_allclose(distances, distances.T)
    assert distances[0, 0] == pytest.approx(shapes.REACH)


def test_drawing_is_deterministic_and_local():
    """Invariance: a character's drawings depend on seed and character, nothing else."""
    together = draw_glyphs(16, 3, 7, systems=FEW)
    alone = draw_glyphs(16, 3, 7, systems=("Hebrew",))
    hebrew = together["systems"] == "Hebrew"
    np.testing.assert_array_equal(together["images"][hebrew], alone["images"])
    other = draw_glyphs(16, 3, 8, systems=("Hebrew",))
    np.testing.assert_array_equal(alone["code_points"], other["code_points"])
    assert np.mean(alone["images"] != other["images"]) > 0.1
    assert np.mean(alone["images"][:, 0] != alone["images"][:, 1]) > 0.1


def test_second_call_reads_what_the_first_kept(only_few, tmp_path):
    make = functools.partial(glyphs, examples_per_class=2, image_size=12, cache_dir=tmp_path)
    first, second = make(), make()
    assert len(only_few) == 1
    np.testing.assert_array_equal(first.meta_test.images, second.meta_test.images)
    assert first.meta_train.class_names == second.meta_train.class_names
    assert (first.meta_test.mean, first.meta_test.std) == ((1.0,), (-1.0,))
    make(seed=1)
    assert len(only_few) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 7}, "image_size must be an integer of at least 8, got 7"),
        ({"examples_per_class": 0}, "examples_per_class must be an integer of at least 1, got 0"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
    ],
)
def test_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        glyphs(**settings)
