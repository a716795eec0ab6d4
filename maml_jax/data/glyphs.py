"""The built-in image benchmark: characters of many writing systems, no download.

In shapes, `C` is the number of classes, `E` the examples of a class and `P` the height
and width of an image in pixels.
"""

import concurrent.futures
import os

import numpy as np

from maml_jax.data import _glyph_shapes as shapes
from maml_jax.data._cache import cached_arrays, fingerprint
from maml_jax.data._checks import check_count
from maml_jax.data.classes import ImageClasses, Splits, select

_VERSION = 1
_CLASSES_AT_A_TIME = 16


def glyphs(
    *,
    image_size: int = 28,
    examples_per_class: int = 20,
    seed: int = 0,
    cache_dir: str | os.PathLike | None = None,
) -> Splits:
    """Draws the characters of matplotlib's fonts in many distorted ways.

    A stand-in for Omniglot that every installation has. Each character is a class; each
    of its examples has a random face, size, slant, rotation, position, stroke weight and
    smooth bending. Splits are by writing system: Arabic, Armenian and Hebrew for
    meta-test; Georgian, Lao, NKo, Ogham, Old Italic, Coptic and Tifinagh for
    meta-validation; the others, and symbols, for meta-train. A character that looks like
    one of another split, also when turned by 90, 180 or 270 degrees, stays in only one:
    meta-test first, then meta-validation.

    Drawing takes some 10 s once per setting; the result is kept and checked when it is
    used again. It depends on the arguments and on the installed matplotlib and Pillow.

    Args:
      image_size: height and width in pixels, at least 8.
      examples_per_class: examples of each class, at least 1.
      seed: of NumPy's generator; at least 0. The classes do not depend on it.
      cache_dir: where the result is kept; None means the environment variable
        MAML_JAX_CACHE_DIR, then ~/.cache/maml_jax.

    Returns:
      `Splits` with images `[C, examples_per_class, P, P, 1]`, 0 = ink, 255 = paper,
      normalised to ink 1 and paper 0.

    Raises:
      ValueError: if an argument is no integer or is too small.

    Example:
      >>> from maml_jax.data import glyphs
      >>> splits = glyphs(examples_per_class=2)  # doctest: +SKIP
      >>> splits.meta_train.image_shape  # doctest: +SKIP
      (28, 28, 1)
    """
    check_count("image_size", image_size, least=8)
    check_count("examples_per_class", examples_per_class)
    check_count("seed", seed, least=0)
    import matplotlib
    import PIL

    sources = fingerprint(_VERSION, matplotlib.__version__, PIL.__version__, np.__version__)
    arrays = cached_arrays(
        f"glyphs-{image_size}-{examples_per_class}-{seed}-{sources}",
        lambda: draw_glyphs(image_size, examples_per_class, seed),
        cache_dir,
    )
    return _as_splits(arrays)


def draw_glyphs(
    image_size: int,
    examples_per_class: int,
    seed: int,
    *,
    systems: tuple[str, ...] | None = None,
) -> dict[str, np.ndarray]:
    """Draws all classes, as the arrays that are cached.

    Args:
      image_size: height and width in pixels.
      examples_per_class: examples of each class.
      seed: of NumPy's generator.
      systems: names of writing systems; None means all.

    Returns:
      `images` uint8 `[C, E, P, P, 1]`, `code_points` `[C]`, and the names of `systems`
      `[C]` and `splits` `[C]`.
    """
    found = shapes.render_glyphs(systems)
    count = len(found.code_points)
    images = np.empty((count, examples_per_class, image_size, image_size, 1), np.uint8)

    def draw(first: int) -> None:
        last = min(first + _CLASSES_AT_A_TIME, count)
        glyph_range = slice(found.start[first], found.start[last])
        distances = shapes.signed_distances(found.ink[glyph_range])
        # A seed per character: its examples do not depend on which others are drawn.
        for k in range(first, last):
            rng = np.random.default_rng([seed, int(found.code_points[k])])
            faces = distances[found.start[k] - found.start[first] :]
            faces = shapes.same_shape(faces[: found.start[k + 1] - found.start[k]])
            images[k, ..., 0] = _distort(faces, examples_per_class, image_size, rng)

    # NumPy releases the interpreter's lock in the loops that matter.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(draw, range(0, count, _CLASSES_AT_A_TIME)))
    return {
        "images": images,
        "code_points": found.code_points,
        "systems": np.array(found.systems),
        "splits": np.array(found.splits),
    }


def _as_splits(arrays: dict[str, np.ndarray]) -> Splits:
    count, examples = arrays["images"].shape[:2]
    classes = ImageClasses(
        images=arrays["images"],
        counts=np.full(count, examples, np.int32),
        class_names=tuple(f"U+{code_point:04X}" for code_point in arrays["code_points"]),
        groups=tuple(map(str, arrays["systems"])),
        mean=(1.0,),
        std=(-1.0,),
    )
    return Splits(
        **{
            split: select(classes, np.flatnonzero(arrays["splits"] == split))
            for split in ("meta_train", "meta_validation", "meta_test")
        }
    )


def _distort(
    faces: np.ndarray, count: int, image_size: int, rng: np.random.Generator
) -> np.ndarray:
    """Draws `count` examples of a character, given its faces' distances `[F, S, S]`.

    Returns:
      uint8 `[count, P, P]`, 255 = paper.
    """
    face = rng.integers(len(faces), size=count)
    centre = (shapes.SIZE - 1) / 2
    pixel = shapes.SIZE / image_size
    axis = (np.arange(image_size, dtype=np.float32) + 0.5) * pixel - 0.5 - centre
    rows, columns = np.meshgrid(axis, axis, indexing="ij")
    bend = _bends(count, image_size, rng)
    matrix = _affine_maps(count, rng)
    shift = rng.uniform(-_SHIFT, _SHIFT, (count, 2, 1)).astype(np.float32)
    output = np.stack([rows.ravel(), columns.ravel()])
    # From output pixels back to the shape: bend, undo the shift, then the linear map.
    at = matrix @ (output[None] + bend - shift) + np.float32(centre)
    weight = rng.uniform(*_WEIGHT, (count, 1)).astype(np.float32)
    distance = _sample(faces, face, at) - weight
    ink = np.clip(0.5 - distance / np.float32(pixel), 0.0, 1.0)
    return np.rint(255.0 * (1.0 - ink)).astype(np.uint8).reshape(count, image_size, image_size)


# Chosen so that the nearest neighbour in pixels is mediocre on 5-way 1-shot tasks (see
# tests/test_data_glyphs.py) while the characters stay easy to read.
_ROTATION = np.deg2rad(18.0)
_SHEAR = 0.3
_SCALE = (0.75, 1.15)
_STRETCH = 0.15
_SHIFT = 4.0  # pixels of the shape, of which there are shapes.SIZE
_BEND = 2.2  # pixels of the shape, standard deviation
_BEND_KNOTS = 4
_WEIGHT = (-0.4, 1.6)  # pixels of the shape by which an outline moves outwards


def _affine_maps(count: int, rng: np.random.Generator) -> np.ndarray:
    """Draws `count` linear maps from image to shape: float32 `[count, 2, 2]`."""
    angle = rng.uniform(-_ROTATION, _ROTATION, count)
    shear = rng.uniform(-_SHEAR, _SHEAR, count)
    size = rng.uniform(*_SCALE, count)
    stretch = np.exp(rng.uniform(-_STRETCH, _STRETCH, count))
    cos, sin = np.cos(angle), np.sin(angle)
    rotation = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)
    one, zero = np.ones(count), np.zeros(count)
    # Rows lean on columns, never the reverse: writing slants to the side.
    slant = np.stack([np.stack([one, zero], -1), np.stack([shear, one], -1)], -2)
    scale = np.stack([1.0 / (size * stretch), stretch / size], -1)[:, None, :]
    return (slant @ (rotation * scale)).astype(np.float32)


def _bends(count: int, image_size: int, rng: np.random.Generator) -> np.ndarray:
    """Draws smooth displacements: float32 `[count, 2, P * P]` in pixels of the shape."""
    knots = rng.normal(0.0, _BEND, (count, 2, _BEND_KNOTS, _BEND_KNOTS)).astype(np.float32)
    where = np.linspace(-0.5, _BEND_KNOTS - 0.5, image_size)[:, None] - np.arange(_BEND_KNOTS)
    # Gaussian weights around each knot, made to sum to 1: no corners, unlike linear ones.
    basis = np.exp(-0.5 * np.square(where / 0.6))
    basis = (basis / basis.sum(axis=1, keepdims=True)).astype(np.float32)
    return (basis @ knots @ basis.T).reshape(count, 2, -1)


def _sample(faces: np.ndarray, face: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Reads distances `[F, S, S]` between pixels, linearly, at `at` `[count, 2, P * P]`."""
    side = faces.shape[-1]
    at = np.clip(at, 0.0, np.float32(side - 1.001))
    corner = at.astype(np.int32)
    part = at - corner
    flat = faces.reshape(-1)
    index = face[:, None] * side * side + corner[:, 0] * side + corner[:, 1]
    top = flat[index] * (1 - part[:, 1]) + flat[index + 1] * part[:, 1]
    bottom = flat[index + side] * (1 - part[:, 1]) + flat[index + side + 1] * part[:, 1]
    return top * (1 - part[:, 0]) + bottom * part[:, 0]
