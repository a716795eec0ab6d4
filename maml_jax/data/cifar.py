"""CIFAR-FS and FC100: few-shot benchmarks made of the 100 classes of CIFAR-100."""

import os
from typing import Any

import numpy as np

from maml_jax.data import _tfds
from maml_jax.data._cache import cached_arrays, fingerprint
from maml_jax.data._published import published_split
from maml_jax.data.classes import ImageClasses, Splits, select

_SIZES = {"train": 50_000, "test": 10_000}
_EXAMPLES = 600

# Per channel, of all 50,000 training images of CIFAR-100 divided by 255: the numbers
# that are customary for it. Both benchmarks share them, so that inputs are comparable.
_MEAN = (0.5070751592371323, 0.48654887331495095, 0.4409178433670343)
_STD = (0.2673342858792401, 0.2564384629170883, 0.27615047132568404)


def cifar_fs(*, data_dir: str | os.PathLike | None = None) -> Splits:
    """Reads CIFAR-FS: 64, 16 and 20 classes, drawn at random, of 600 images each.

    Args:
      data_dir: the folder that TensorFlow Datasets wrote `cifar100` to; None means the
        environment variable MAML_JAX_DATA_DIR, then TFDS's default.

    Returns:
      `Splits` with images `[C, 600, 32, 32, 3]`, normalised per channel by the mean and
      standard deviation of CIFAR-100's training images. The group of a class is its
      superclass. Decoding takes about 20 s, once; the result is kept (184 MB).

    Raises:
      FileNotFoundError: if the data set is not prepared; nothing is downloaded here.
      ValueError: if the data set has other counts or names than the published one, or a
        file is damaged.

    Example:
      >>> from maml_jax.data import cifar_fs
      >>> cifar_fs().meta_train.num_classes  # doctest: +SKIP
      64

    References:
      L. Bertinetto, J. Henriques, P. Torr, A. Vedaldi, "Meta-learning with differentiable
      closed-form solvers", ICLR 2019, section 4.1. https://arxiv.org/abs/1805.08136
    """
    classes = _cifar100(data_dir)
    index = {name: i for i, name in enumerate(classes.class_names)}
    split = published_split("cifar_fs")
    return Splits(
        **{part: select(classes, [index[n] for n in names]) for part, names in split.items()}
    )


def fc100(*, data_dir: str | os.PathLike | None = None) -> Splits:
    """Reads FC100: 60, 20 and 20 classes, split by superclass (12, 4 and 4).

    Harder than CIFAR-FS, since meta-test classes resemble no meta-train class.

    Args:
      data_dir: as in `cifar_fs`.

    Returns:
      `Splits`, as in `cifar_fs`.

    Raises:
      FileNotFoundError: if the data set is not prepared; nothing is downloaded here.
      ValueError: if the data set has other counts or names than the published one, or a
        file is damaged.

    Example:
      >>> from maml_jax.data import fc100
      >>> sorted(set(fc100().meta_validation.groups))[0]  # doctest: +SKIP
      'large_carnivores'

    References:
      B. Oreshkin, P. Rodríguez, A. Lacoste, "TADAM: Task dependent adaptive metric for
      improved few-shot learning", NeurIPS 2018, section 4.1.
      https://arxiv.org/abs/1805.10123
    """
    classes = _cifar100(data_dir)
    split = published_split("fc100")
    return Splits(
        **{
            part: select(classes, [i for i, group in enumerate(classes.groups) if group in groups])
            for part, groups in split.items()
        }
    )


def _cifar100(data_dir: str | os.PathLike | None) -> ImageClasses:
    """Returns all 100 classes, from both TFDS splits, in the order of their labels."""
    builder = _tfds.prepared_builder("cifar100", data_dir, required=_SIZES)
    info = (builder.data_path / "dataset_info.json").read_text()
    names = _tfds.label_names(builder, "label", published_split("cifar_fs"))
    superclasses = _tfds.label_names(builder, "coarse_label", published_split("fc100"))
    arrays = cached_arrays(f"cifar100-{fingerprint(1, info, names)}", lambda: _decode(builder))
    return ImageClasses(
        images=arrays["images"],
        counts=np.full(len(names), _EXAMPLES, np.int32),
        class_names=tuple(names),
        groups=tuple(superclasses[i] for i in arrays["superclass"]),
        mean=_MEAN,
        std=_STD,
    )


def _decode(builder: Any) -> dict[str, np.ndarray]:
    """Decodes all images to uint8 `[100, 600, 32, 32, 3]`, and each class's superclass."""
    count = builder.info.features["label"].num_classes
    images = np.zeros((count, _EXAMPLES, 32, 32, 3), np.uint8)
    superclass = np.zeros(count, np.int32)
    filled = np.zeros(count, np.int32)
    for split in _SIZES:
        for record in _tfds.read_records(builder, split):
            label = record["label"]
            images[label, filled[label]] = _tfds.decode_image(record["image"], "RGB", (32, 32))
            superclass[label] = record["coarse_label"]
            filled[label] += 1
    return {"images": images, "superclass": superclass}
