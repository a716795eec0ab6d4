"""Characters as shapes: rendered once per face, look-alikes removed.

In shapes, `G` is the number of glyphs (a character in a face), `K` the number of
characters and `S` the `SIZE` of a shape in pixels.
"""

import dataclasses
import pathlib
import unicodedata

import numpy as np

from maml_jax.data._writing_systems import FACES, WRITING_SYSTEMS

SIZE = 48
"""Height and width of a shape in pixels; its ink fills the middle `INK` pixels."""
INK = 32
REACH = 6
"""Distances to the outline are cut off here, in pixels: strokes grow by far less."""

_RENDER_PIXELS = 96
# Correlations of softened outlines, chosen by eye on sorted pairs. Two characters of one
# split may be hard to tell apart; a meta-test character must not have been seen under
# another name, upright or turned, so there the bar is lower.
_ALIKE_IN_SPLIT = 0.94
_ALIKE_ACROSS = 0.87
# Below this, a face draws another shape under the same code point: ⋃ as ⋂, say.
_SAME_SHAPE = 0.35
_SOFT_PIXELS = 1.0
_DEEPEST = 5.0
# Cased and caseless letters, letter numbers, digits and symbols. Marks, modifiers and
# punctuation are specks or doubles of one another once their size is normalised.
_CATEGORIES = frozenset({"Lu", "Ll", "Lt", "Lo", "Nd", "Nl", "No", "Sm", "So", "Sc"})
# Joined forms of Arabic, script and Fraktur letters, circled ones: variants by name, yet
# shapes of their own.
_OWN_SHAPES = frozenset({"<initial>", "<medial>", "<final>", "<font>", "<circle>"})


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Glyphs:
    """The characters that are drawn, in the order of their classes.

    Attributes:
      ink: uint8 `[G, S, S]`, 255 = ink, all glyphs of a character in a row.
      start: integers `[K + 1]`: glyphs `start[k]` to `start[k + 1] - 1` are character k.
      code_points: integers `[K]`.
      systems: the writing system of each character.
      splits: the split of each character.
    """

    ink: np.ndarray
    start: np.ndarray
    code_points: np.ndarray
    systems: tuple[str, ...]
    splits: tuple[str, ...]


def render_glyphs(systems: tuple[str, ...] | None = None) -> Glyphs:
    """Renders every character of the writing systems that some face has.

    Args:
      systems: names of writing systems; None means all of `WRITING_SYSTEMS`.
    """
    candidates = [
        (split, system, code_point)
        for split, contents in WRITING_SYSTEMS.items()
        for system, ranges in contents.items()
        if systems is None or system in systems
        for first, last in ranges
        for code_point in range(first, last + 1)
        if _is_drawn(chr(code_point))
    ]
    base = _render([code_point for *_, code_point in candidates], first_face_only=True)
    candidates = [candidate for candidate in candidates if candidate[2] in base]
    bases = np.concatenate([base[code_point] for *_, code_point in candidates])
    kept = [candidates[i] for i in _unlike(bases, [split for split, *_ in candidates])]
    rendered = _render([code_point for *_, code_point in kept])
    ink = [np.stack(rendered[code_point]) for *_, code_point in kept]
    return Glyphs(
        ink=np.concatenate(ink),
        start=np.concatenate([[0], np.cumsum([len(faces) for faces in ink])]),
        code_points=np.array([code_point for *_, code_point in kept]),
        systems=tuple(system for _, system, _ in kept),
        splits=tuple(split for split, *_ in kept),
    )


def signed_distances(ink: np.ndarray) -> np.ndarray:
    """Turns ink `[G, S, S]` into signed distances to its outline, in pixels.

    Negative inside, cut off at ±`REACH`. A stroke is made bolder or thinner by moving the
    level that is drawn, and edges stay sharp under any warp. Beside a sharp edge the
    distance is ±1, to the nearest pixel of the other side; a partly covered pixel is
    nearer to 0.

    Returns:
      float32 `[G, S, S]`.
    """
    offset = 0.5 - ink.astype(np.float32) / 255.0
    big = np.float32(REACH**2)
    outside = np.where(offset >= 0.5, big, np.maximum(offset, 0.0) ** 2)
    inside = np.where(offset <= -0.5, big, np.maximum(-offset, 0.0) ** 2)
    return np.sqrt(_spread(outside)) - np.sqrt(_spread(inside))


def same_shape(distances: np.ndarray) -> np.ndarray:
    """Returns those of one character's faces `[F, S, S]` that resemble the first."""
    vectors = _standardised(_outlines(distances))
    return distances[vectors @ vectors[0] >= _SAME_SHAPE]


def _spread(squared: np.ndarray) -> np.ndarray:
    """Least squared distance from each pixel, rows first, then columns."""
    for axis in (1, 2):
        result = squared.copy()
        for step in range(1, REACH):
            near, far = [slice(None)] * 3, [slice(None)] * 3
            near[axis], far[axis] = slice(None, -step), slice(step, None)
            for to, origin in ((tuple(near), tuple(far)), (tuple(far), tuple(near))):
                np.minimum(result[to], squared[origin] + np.float32(step**2), out=result[to])
        squared = result
    return squared


def _is_drawn(character: str) -> bool:
    # Other characters with a decomposition are accented or joined copies.
    decomposition = unicodedata.decomposition(character)
    return unicodedata.category(character) in _CATEGORIES and (
        not decomposition or decomposition.split()[0] in _OWN_SHAPES
    )


def _render(
    code_points: list[int], *, first_face_only: bool = False
) -> dict[int, list[np.ndarray]]:
    """Renders each code point in the faces that have it, as uint8 `[S, S]` of ink."""
    import matplotlib
    from matplotlib.ft2font import FT2Font
    from PIL import ImageFont

    folder = pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    rendered: dict[int, list[np.ndarray]] = {}
    for face in FACES:
        path = str(folder / face)
        has = FT2Font(path).get_charmap()
        # BASIC: one character, one glyph; the shaping engine is not always installed.
        font = ImageFont.truetype(path, _RENDER_PIXELS, layout_engine=ImageFont.Layout.BASIC)
        for code_point in code_points:
            if code_point in has and not (first_face_only and code_point in rendered):
                shape = _shape(chr(code_point), font)
                if shape is not None:
                    rendered.setdefault(code_point, []).append(shape)
    return rendered


def _shape(character: str, font) -> np.ndarray | None:
    """Renders one glyph, scaled to `INK` pixels and centred; None if it has no ink."""
    from PIL import Image, ImageDraw

    left, top, right, bottom = font.getbbox(character)
    canvas = Image.new("L", (max(1, right - left), max(1, bottom - top)))
    ImageDraw.Draw(canvas).text((-left, -top), character, fill=255, font=font)
    box = canvas.getbbox()
    if box is None:
        return None
    scale = INK / max(box[2] - box[0], box[3] - box[1])
    width = max(1, round((box[2] - box[0]) * scale))
    height = max(1, round((box[3] - box[1]) * scale))
    # Pillow's bilinear averages over all source pixels when it reduces.
    image = canvas.resize((width, height), Image.Resampling.BILINEAR, box=box)
    shape = np.zeros((SIZE, SIZE), np.uint8)
    top, left = (SIZE - height) // 2, (SIZE - width) // 2
    shape[top : top + height, left : left + width] = np.asarray(image)
    return shape


def _unlike(bases: np.ndarray, splits: list[str]) -> list[int]:
    """Returns, in order, the shapes `[K, S, S]` that resemble none that is kept before.

    Solid shapes go too: nobody writes those, and a change of stroke weight hides them.
    """
    distances = _in_chunks(bases)
    outlines = _outlines(distances)
    upright = _standardised(outlines)
    names = np.array(splits)
    limit = np.where(names[:, None] == names[None, :], _ALIKE_IN_SPLIT, _ALIKE_ACROSS)
    alike = upright @ upright.T > limit
    for turns in (1, 2, 3):
        turned = _standardised(np.rot90(outlines, turns, axes=(1, 2)))
        alike |= (upright @ turned.T > limit) & (names[:, None] != names[None, :])
    dropped = distances.min(axis=(1, 2)) < -_DEEPEST
    kept: list[int] = []
    for i in range(len(bases)):
        if not dropped[i]:
            kept.append(i)
            dropped |= alike[i]
    return kept


def _outlines(distances: np.ndarray) -> np.ndarray:
    """Soft ink `[G, S / 2, S / 2]`, in which strokes need not meet exactly to match."""
    soft = np.exp(-0.5 * np.square(np.maximum(distances, 0.0) / _SOFT_PIXELS))
    half = SIZE // 2
    return soft.reshape(len(soft), half, 2, half, 2).mean(axis=(2, 4))


def _standardised(outlines: np.ndarray) -> np.ndarray:
    """Vectors `[G, (S / 2)²]` whose dot products are correlations."""
    flat = outlines.reshape(len(outlines), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


def _in_chunks(ink: np.ndarray, chunk: int = 64) -> np.ndarray:
    # Chunks of this size stay in a core's cache, which is several times faster.
    return np.concatenate([signed_distances(ink[i : i + chunk]) for i in range(0, len(ink), chunk)])
