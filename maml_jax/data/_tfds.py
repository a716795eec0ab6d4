"""Data sets that TensorFlow Datasets has prepared, read without TensorFlow or network."""

import contextlib
import io
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
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
      ValueError: if a split has another number of examples, or a file is damaged.
    """
    folder = data_folder(data_dir)
    advice = _advice(name, folder)
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
    with _damage_explained(name, folder / name / version):
        builder = tfds.builder(name, data_dir=os.fspath(folder), file_format="array_record")
        sizes = {
            split: builder.info.splits[split].num_examples
            for split in required
            if split in builder.info.splits
        }
        missing = [path for split in sizes for path in _absent_files(builder, split)]
        prepared = builder.is_prepared()
    if not prepared or missing:
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


def label_names(builder: Any, feature: str, split: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns the names of a label, in the order of their numbers.

    Args:
      builder: from `prepared_builder`.
      feature: of the data set, such as "label".
      split: the published names of each part, which together are all.

    Raises:
      ValueError: if it has others, or one twice.
    """
    names = list(builder.info.features[feature].names)
    published = [name for part in split.values() for name in part]
    if sorted(names) != sorted(published):
        odd = min(set(published) ^ set(names), default="a name twice")
        raise ValueError(
            f"{builder.data_path / feature}.labels.txt must hold the {len(published)} published "
            f"names once each, got {len(names)} that differ at {odd!r}; remove "
            f"{builder.data_path} and {_advice(builder.name, builder.data_path.parents[1])}"
        )
    return names


def read_records(builder: Any, split: str) -> Iterator[dict[str, Any]]:
    """Yields the records of one split, in order, with `image` left as encoded bytes.

    Raises:
      ValueError: if a file is damaged, by the checksums of its blocks.
    """
    import tensorflow_datasets as tfds

    with _damage_explained(builder.name, builder.data_path):
        source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        count = len(source)
    for start in range(0, count, _CHUNK):
        with _damage_explained(builder.name, builder.data_path):
            records = source.__getitems__(range(start, min(start + _CHUNK, count)))
        yield from records


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


def _advice(name: str, folder: os.PathLike) -> str:
    return f"run: maml-jax prepare {name} --data-dir {folder}"


@contextlib.contextmanager
def _damage_explained(name: str, path: os.PathLike) -> Iterator[None]:
    """Turns what readers raise on a damaged file, which may be anything, into one message."""
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise ValueError(
            f"{name} is damaged and cannot be read ({reason}); remove {path} and "
            f"{_advice(name, pathlib.Path(path).parents[1])}"
        ) from error


def _absent_files(builder: Any, split: str) -> list[str]:
    names = builder.info.splits[split].filenames
    return [name for name in sorted(names) if not (builder.data_path / name).exists()]
