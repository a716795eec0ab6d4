"""Image folders made on the spot, of images whose content is known."""

import numpy as np
import pytest
from PIL import Image

from maml_jax.data import image_folder


def write(path, value, size=(28, 28), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


def flat(root, num_classes=10):
    """Class i has i % 3 + 2 images, whose value is 20 i + their number."""
    for i in range(num_classes):
        for j in range(i % 3 + 2):
            write(root / f"class{i:02d}" / f"{j}.png", 20 * i + j)
    return root


def parts(splits):
    return splits.meta_train, splits.meta_validation, splits.meta_test


def test_every_image_is_read_into_its_class(tmp_path):
    """Oracle: the values that were written; counts are ragged."""
    splits = image_folder(flat(tmp_path))
    seen = {}
    for classes in parts(splits):
        for name, images, count in zip(
            classes.class_names, classes.images, classes.counts, strict=True
        ):
            seen[name] = images[:count, 0, 0, 0].tolist()
            assert images.shape[1:] == (28, 28, 1)
    assert seen == {f"class{i:02d}": [20 * i + j for j in range(i % 3 + 2)] for i in range(10)}
    # Shares of 10 classes, one each first: 1 + 0.64 * 7, and so on, rounded.
    assert [classes.num_classes for classes in parts(splits)] == [5, 3, 2]
    assert (splits.meta_train.mean, splits.meta_train.std) == ((1.0,), (-1.0,))


def test_split_depends_on_seed_alone(tmp_path):
    names = [
        [c.class_names for c in parts(image_folder(flat(tmp_path), seed=seed))]
        for seed in (0, 0, 1)
    ]
    assert names[0] == names[1]
    assert names[0] != names[2]


def test_groups_are_kept_together_and_two_are_too_few_to_split(tmp_path):
    for g in range(4):
        for c in range(3):
            write(tmp_path / "four" / f"group{g}" / f"c{c}" / "a.jpg", 10 * g + c)
            if g < 2:
                write(tmp_path / "two" / f"group{g}" / f"c{c}" / "a.JPEG", 10 * g + c)
    four = [set(c.groups) for c in parts(image_folder(tmp_path / "four"))]
    assert sum(map(len, four)) == 4
    assert len(set.union(*four)) == 4
    assert all(four)
    two = [c.num_classes for c in parts(image_folder(tmp_path / "two"))]
    assert sum(two) == 6


@pytest.mark.parametrize(
    "names", [("meta_train", "meta_validation", "meta_test"), ("train", "val", "test")]
)
def test_split_folders_are_obeyed(tmp_path, names):
    for i, name in enumerate(names):
        for c in range(2):
            write(tmp_path / name / f"{name}{c}" / "a.png", i)
    for name, classes in zip(names, parts(image_folder(tmp_path)), strict=True):
        assert classes.class_names == (f"{name}0", f"{name}1")


def test_colour_is_normalised_over_meta_train(tmp_path):
    """Oracle: NumPy's mean and std of the meta-train pixels, without the padding."""
    rng = np.random.default_rng(0)
    for i in range(6):
        for j in range(1 + i % 2):
            value = tuple(int(v) for v in rng.integers(0, 200, 2))
            write(tmp_path / f"c{i}" / f"{j}.png", (*value, 30), size=(12, 9), mode="RGB")
    classes = image_folder(tmp_path, channels=3, image_size=10).meta_train
    assert classes.image_shape == (10, 10, 3)
    pixels = np.concatenate(
        [
            images[:n].reshape(-1, 3)
            for images, n in zip(classes.images, classes.counts, strict=True)
        ]
    )
    np.testing.assert_allclose(classes.mean, pixels.mean(axis=0) / 255.0, rtol=1e-12)
    np.testing.assert_allclose(classes.std[:2], pixels.std(axis=0)[:2] / 255.0, rtol=1e-9)
    assert classes.std[2] == pytest.approx(1.0) or classes.std[2] < 1e-6


def test_unreadable_image_is_named(tmp_path):
    flat(tmp_path, 4)
    (tmp_path / "class01" / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"readable image, got .*class01.*broken\.png"):
        image_folder(tmp_path)


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="root must be a folder of images"):
        image_folder(tmp_path / "absent")
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "notes.txt").write_text("no image")
    with pytest.raises(FileNotFoundError, match=r"must have images at class/\*"):
        image_folder(tmp_path)


def test_too_few_classes(tmp_path):
    with pytest.raises(ValueError, match="at least 3 classes, one for each split, got 2"):
        image_folder(flat(tmp_path, 2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 2}, "channels must be 1 or 3, got 2"),
        ({"image_size": 0}, "image_size must be an integer of at least 1, got 0"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"split": (0.5, 0.5, 0.5)}, "three positive shares that sum to 1"),
        ({"split": (0.5, 0.5)}, "three positive shares that sum to 1"),
        ({"split": (1.0, 0.0, 0.0)}, "three positive shares that sum to 1"),
    ],
)
def test_errors(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        image_folder(tmp_path, **settings)
