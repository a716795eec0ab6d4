"""Omniglot: 1,623 handwritten characters of 50 alphabets, 20 drawings of each."""

import os
from typing import Any

import numpy as np

from maml_jax.data import _tfds
from maml_jax.data._cache import cached_arrays, fingerprint
from maml_jax.data._checks import check_count
from maml_jax.data._published import published_split
from maml_jax.data.classes import ImageClasses, Splits, select

_SIZES = {"train": 19_280, "test": 13_180}
_DRAWINGS = 20


def omniglot(*, data_dir: str | os.PathLike | None = None, image_size: int = 28) -> Splits:
    """Reads Omniglot with the class split of Vinyals et al.

    Meta-train, meta-validation and meta-test have 1,028, 172 and 423 characters; with
    `episodes(..., rotations=True)` these become 4,112, 688 and 1,692 classes. Images are
    normalised to ink 1 and paper 0. Decoding takes about 20 s on one slow core, once: the
    result is kept (25 MB at 28 x 28 pixels) and checked when it is used again.

    Args:
      data_dir: the folder that TensorFlow Datasets wrote `omniglot` to; None means the
        environment variable MAML_JAX_DATA_DIR, then TFDS's default.
      image_size: height and width in pixels, reduced from 105 by Lanczos; at least 1.

    Returns:
      `Splits` with images `[C, 20, image_size, image_size, 1]`, 0 = ink, 255 = paper.

    Raises:
      FileNotFoundError: if the data set is not prepared; nothing is downloaded here.
      ValueError: if `image_size` is no integer of at least 1, the data set has other counts
        or names than the published one, or a file is damaged.

    Example:
      >>> from maml_jax.data import omniglot
      >>> omniglot().meta_test.num_classes  # doctest: +SKIP
      423

    References:
      B. Lake, R. Salakhutdinov, J. Tenenbaum, "Human-level concept learning through
      probabilistic program induction", Science 350, 2015.
      O. Vinyals et al., "Matching Networks for One Shot Learning", NeurIPS 2016; the
      split as published with J. Snell, K. Swersky, R. Zemel, "Prototypical Networks for
      Few-shot Learning", NeurIPS 2017. https://arxiv.org/abs/1703.05175
    """
    check_count("image_size", image_size)
    split = published_split("omniglot_vinyals")
    characters = {
        part: [f"{alphabet}_{i}" for alphabet, numbers in content.items() for i in numbers]
        for part, content in split.items()
    }
    builder = _tfds.prepared_builder("omniglot", data_dir, required=_SIZES)
    names = _tfds.label_names(builder, "label", characters)
    info = (builder.data_path / "dataset_info.json").read_text()
    arrays = cached_arrays(
        f"omniglot-{image_size}-{fingerprint(1, info, names)}",
        lambda: {"images": _decode(builder, image_size)},
    )
    classes = ImageClasses(
        images=arrays["images"],
        counts=np.full(len(names), _DRAWINGS, np.int32),
        class_names=tuple(names),
        groups=tuple(name.rpartition("_")[0] for name in names),
        mean=(1.0,),
        std=(-1.0,),
    )
    index = {name: i for i, name in enumerate(names)}
    return Splits(
        **{part: select(classes, [index[n] for n in chosen]) for part, chosen in characters.items()}
    )


def _decode(builder: Any, image_size: int) -> np.ndarray:
    """Decodes all drawings to uint8 `[1623, 20, image_size, image_size, 1]`."""
    size = (image_size, image_size)
    count = builder.info.features["label"].num_classes
    images = np.full((count, _DRAWINGS, *size, 1), 255, np.uint8)
    filled = np.zeros(count, np.int32)
    for split in _SIZES:
        for record in _tfds.read_records(builder, split):
            label = record["label"]
            image = _tfds.decode_image(record["image"], "L", size)
            images[label, filled[label], ..., 0] = image
            filled[label] += 1
    return images
