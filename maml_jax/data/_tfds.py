"""Data sets that TensorFlow Datasets has prepared, read without TensorFlow or network."""

import io
import os
from typing import Any

import numpy as np

from maml_jax.data._folders import data_folder

_CHUNK = 2000
"""Records read at a time: bounds the encoded bytes held in memory to a few MB."""


def prepared_builder(
    name: str, data_dir: str | os.PathLike | None, *, required: dict[str, int]
) -> Any:
    """Returns TFDS's builder of a data set that is ready to be read.

    Args:
      name: "omniglot" or "cifar100".
      data_dir: see `data_folder`.
      required: the number of examples that each split must have.

    Raises:
      FileNotFoundError: at once, without touching the network, if it is not prepared.
      ValueError: if a split has another number of examples.
    """
    folder = data_folder(data_dir)
    advice = f"run: maml-jax prepare {name} --data-dir {folder}"
    # Looked up before TFDS is asked: a builder of an absent data set looks for it online.
    # A preparation that was killed leaves a folder named incomplete.*, which is no version.
    found = sorted(
        path.parent.name
        for path in folder.glob(f"{name}/*/dataset_info.json")
        if not path.parent.name.startswith("incomplete")
    )
    if not found:
        raise FileNotFoundError(f"{name} must be prepared once, and is not in {folder}; {advice}")
    import tensorflow_datasets as tfds

    version = str(tfds.builder_cls(name).VERSION)
    if version not in found:
        raise FileNotFoundError(
            f"{name} must be prepared at version {version}, got {', '.join(found)} in "
            f"{folder}; {advice}"
        )
    builder = tfds.builder(name, data_dir=os.fspath(folder), file_format="array_record")
    sizes = {
        split: builder.info.splits[split].num_examples
        for split in required
        if split in builder.info.splits
    }
    missing = [path for split in sizes for path in _absent_files(builder, split)]
    if not builder.is_prepared() or missing:
        raise FileNotFoundError(
            f"{name} must have all its files, got none for {missing[:3] or builder.data_path}; "
            f"remove {builder.data_path} and {advice}"
        )
    if sizes != required:
        raise ValueError(
            f"{name} must have {required} examples, got {sizes}; remove "
            f"{builder.data_path} and {advice}"
        )
    return builder


def read_records(builder: Any, split: str):
    """Yields the records of one split, in order, with `image` left as encoded bytes."""
    import tensorflow_datasets as tfds

    source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    for start in range(0, len(source), _CHUNK):
        yield from source.__getitems__(range(start, min(start + _CHUNK, len(source))))


def decode_image(data: bytes, mode: str, size: tuple[int, int]) -> np.ndarray:
    """Decodes an image file to uint8 `[H, W]` (mode "L") or `[H, W, 3]` (mode "RGB").

    Args:
      data: the bytes of a PNG or JPEG file.
      mode: Pillow's name of the pixel type.
      size: height and width in pixels; images of another size are resampled (Lanczos).
    """
    from PIL import Image

    with Image.open(io.BytesIO(data)) as opened:
        image = opened.convert(mode)
    height, width = size
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _absent_files(builder: Any, split: str) -> list[str]:
    names = builder.info.splits[split].filenames
    return [name for name in sorted(names) if not (builder.data_path / name).exists()]
