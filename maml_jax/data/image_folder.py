"""Few-shot classes from folders of image files."""

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from maml_jax.data import _tfds
from maml_jax.data._checks import check_count
from maml_jax.data.classes import ImageClasses, Splits

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
_SPLIT_FOLDERS = (
    ("meta_train", "meta_validation", "meta_test"),
    ("train", "val", "test"),
)
_PARTS = _SPLIT_FOLDERS[0]

_Classes = dict[tuple[str, str], list[pathlib.Path]]
"""(group, class) -> its files, sorted."""


def image_folder(
    root: str | os.PathLike,
    *,
    image_size: int = 28,
    channels: int = 1,
    seed: int = 0,
    split: Sequence[float] = (0.64, 0.16, 0.20),
) -> Splits:
    """Reads classes from `root/class/*` or `root/group/class/*` (PNG and JPEG).

    If `root` has folders meta_train, meta_validation and meta_test (or train, val and
    test), these are the splits. Otherwise groups are split, if there are at least three,
    so that no group is in two splits; without groups, classes are. Which go where depends
    on their names, `seed` and `split` alone. Nothing is cached: every call decodes.

    Args:
      root: the folder.
      image_size: height and width in pixels; images of another size are resampled
        (Lanczos), whatever their aspect ratio.
      channels: 1 for grey (ink on paper: input 1 where black, 0 where white) or 3 for
        colour, normalised by each channel's mean and standard deviation over meta-train.
      seed: of NumPy's generator, at least 0.
      split: the shares of meta-train, meta-validation and meta-test, which sum to 1;
        each gets at least one group or class.

    Returns:
      `Splits` with images `[C, E, image_size, image_size, channels]`; classes may have
      different numbers of examples.

    Raises:
      FileNotFoundError: if `root` is no folder, or a split has no images.
      ValueError: if an argument is out of range, there are fewer than three classes, or
        a file cannot be read as an image; the file is named.

    Example:
      >>> from maml_jax.data import image_folder
      >>> splits = image_folder("birds", image_size=84, channels=3)  # doctest: +SKIP
    """
    check_count("image_size", image_size)
    check_count("seed", seed, least=0)
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels!r}.")
    shares = np.asarray(split, dtype=np.float64)
    if shares.shape != (3,) or np.any(shares <= 0.0) or abs(shares.sum() - 1.0) > 1e-6:
        raise ValueError(f"split must be three positive shares that sum to 1, got {split}.")
    root = pathlib.Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"root must be a folder of images, and {root} is none.")
    parts = _given_parts(root) or _drawn_parts(_find(root), shares, seed)
    read = {part: _read(classes, image_size, channels) for part, classes in parts.items()}
    if channels == 1:
        normalisation = {"mean": (1.0,), "std": (-1.0,)}
    else:
        normalisation = _colour_normalisation(*read["meta_train"])
    return Splits(
        **{
            part: ImageClasses(
                images=images,
                counts=counts,
                class_names=tuple(name for _, name in parts[part]),
                groups=tuple(group for group, _ in parts[part]),
                **normalisation,
            )
            for part, (images, counts) in read.items()
        }
    )


def _find(folder: pathlib.Path) -> _Classes:
    """Finds the classes below a folder, sorted by group and name; raises if none."""
    classes: _Classes = {}
    for path in sorted(folder.rglob("*")):
        depth = len(path.relative_to(folder).parts)
        if path.suffix.lower() in _SUFFIXES and depth in (2, 3) and path.is_file():
            group = path.parts[-3] if depth == 3 else ""
            classes.setdefault((group, path.parts[-2]), []).append(path)
    if not classes:
        raise FileNotFoundError(
            f"{folder} must have images at class/* or group/class/*, got none that end in "
            f"{', '.join(sorted(_SUFFIXES))}."
        )
    return dict(sorted(classes.items()))


def _given_parts(root: pathlib.Path) -> dict[str, _Classes] | None:
    for names in _SPLIT_FOLDERS:
        if all((root / name).is_dir() for name in names):
            return {part: _find(root / name) for part, name in zip(_PARTS, names, strict=True)}
    return None


def _drawn_parts(classes: _Classes, shares: np.ndarray, seed: int) -> dict[str, _Classes]:
    """Splits by group if there are at least three, otherwise by class."""
    groups = sorted({group for group, _ in classes})
    by_group = len(groups) >= 3
    units = groups if by_group else list(classes)
    if len(units) < 3:
        raise ValueError(
            f"There must be at least 3 classes, one for each split, got {len(units)}; add classes."
        )
    order = np.random.default_rng(seed).permutation(len(units))
    # Each part gets one unit first, so that no share is rounded down to nothing.
    ends = np.rint(np.cumsum(shares) * (len(units) - 3)).astype(int) + np.array([1, 2, 3])
    starts = [0, *ends[:-1]]
    parts = {}
    for part, start, end in zip(_PARTS, starts, ends, strict=True):
        wanted = {units[i] for i in order[start:end]}
        parts[part] = {
            name: files
            for name, files in classes.items()
            if (name[0] if by_group else name) in wanted
        }
    return parts


def _read(classes: _Classes, image_size: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Decodes all files to `[C, E, image_size, image_size, channels]` and counts `[C]`."""
    counts = np.array([len(files) for files in classes.values()], np.int32)
    size = (image_size, image_size)
    images = np.zeros((len(classes), counts.max(), *size, channels), np.uint8)
    for i, files in enumerate(classes.values()):
        for j, path in enumerate(files):
            try:
                image = _tfds.decode_image(path.read_bytes(), "L" if channels == 1 else "RGB", size)
            except (OSError, SyntaxError, ValueError) as error:
                raise ValueError(
                    f"Every file must be a readable image, got {path} ({error}); repair or "
                    "remove it."
                ) from error
            images[i, j] = image.reshape(*size, channels)
    return images, counts


def _colour_normalisation(images: np.ndarray, counts: np.ndarray) -> dict[str, tuple[float, ...]]:
    """Mean and standard deviation of each channel over the examples that are there."""
    valid = np.arange(images.shape[1])[None, :] < counts[:, None]
    pixels = images[valid].reshape(-1, images.shape[-1])
    # A histogram is exact and needs no copy of all pixels as floats.
    levels = np.arange(256) / 255.0
    shares = [np.bincount(channel, minlength=256) / len(pixels) for channel in pixels.T]
    mean = [float(share @ levels) for share in shares]
    variance = [float(s @ np.square(levels - m)) for s, m in zip(shares, mean, strict=True)]
    # A channel that never changes stays 0 rather than becoming 0 / 0.
    return {"mean": tuple(mean), "std": tuple(float(np.sqrt(v)) or 1.0 for v in variance)}
