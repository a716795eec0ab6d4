"""Images of many classes, and the three sets of classes of a few-shot benchmark.

In shapes, `C` is the number of classes, `E` the most examples of any class, and `H`
and `W` the height and width of an image in pixels.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ImageClasses:
    """Images of many classes, held as one array.

    A network's input is `(image / 255 - mean) / std`, channel by channel.

    Attributes:
      images: uint8 `[C, E, H, W, channels]`; classes with fewer than E examples are
        padded at the end, and the padding is never drawn.
      counts: integers `[C]`, the examples that each class really has, in [1, E].
      class_names: the name of each class.
      groups: what each class belongs to: its alphabet, script or superclass.
      mean: what is subtracted from each channel of `image / 255`.
      std: what each channel is then divided by; not 0. Ink on paper has mean 1 and
        std -1, which makes ink 1 and paper 0.

    Example:
      >>> import numpy as np
      >>> from maml_jax.data import ImageClasses
      >>> classes = ImageClasses(
      ...     images=np.zeros((2, 20, 28, 28, 1), np.uint8),
      ...     counts=np.array([20, 15]),
      ...     class_names=("alpha", "beta"),
      ...     groups=("Greek", "Greek"),
      ... )
      >>> classes.num_classes, classes.image_shape
      (2, (28, 28, 1))
    """

    images: np.ndarray
    counts: np.ndarray
    class_names: tuple[str, ...]
    groups: tuple[str, ...]
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self):
        if self.images.dtype != np.uint8 or self.images.ndim != 5 or 0 in self.images.shape:
            raise ValueError(
                "images must be uint8 [classes, examples, height, width, channels], none of "
                f"them 0, got {self.images.dtype} {list(self.images.shape)}."
            )
        lengths = {
            "counts": len(self.counts),
            "class_names": len(self.class_names),
            "groups": len(self.groups),
        }
        for name, length in lengths.items():
            if length != self.num_classes:
                raise ValueError(
                    f"{name} must have one entry per class, got {length} for "
                    f"{self.num_classes} classes."
                )
        if np.min(self.counts) < 1 or np.max(self.counts) > self.images.shape[1]:
            raise ValueError(
                f"counts must lie in [1, {self.images.shape[1]}], got "
                f"{np.min(self.counts)} to {np.max(self.counts)}."
            )
        channels = self.image_shape[-1]
        if len(self.mean) != channels or len(self.std) != channels or 0.0 in self.std:
            raise ValueError(
                f"mean and std must have one number per channel ({channels}) and std no 0, "
                f"got {self.mean} and {self.std}."
            )

    @property
    def num_classes(self) -> int:
        """The number of classes C."""
        return self.images.shape[0]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one image."""
        return self.images.shape[2:]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Splits:
    """The classes to learn from, to choose settings on, and to report.

    No class, named by its group and its own name, may be in two of them.

    Attributes:
      meta_train: classes that the outer loop learns from.
      meta_validation: classes that choices are made on.
      meta_test: classes for the reported number, once.

    Example:
      >>> from maml_jax.data import glyphs
      >>> splits = glyphs()  # doctest: +SKIP
      >>> splits.meta_test.groups[0]  # doctest: +SKIP
      'Arabic'
    """

    meta_train: ImageClasses
    meta_validation: ImageClasses
    meta_test: ImageClasses

    def __post_init__(self):
        seen: dict[tuple[str, str], str] = {}
        shared = []
        for split in ("meta_train", "meta_validation", "meta_test"):
            classes = getattr(self, split)
            for name in zip(classes.groups, classes.class_names, strict=True):
                if name in seen:
                    shared.append(f"{'/'.join(name)} ({seen[name]} and {split})")
                seen.setdefault(name, split)
        if shared:
            more = f" and {len(shared) - 10} more" if len(shared) > 10 else ""
            raise ValueError(
                "No class may be in two splits, or twice in one, got "
                f"{', '.join(shared[:10])}{more}; remove or rename them."
            )


def select(classes: ImageClasses, indices) -> ImageClasses:
    """Returns the classes at `indices`, in that order.

    Args:
      classes: the classes to choose from.
      indices: integers `[K]` in [0, C).

    Example:
      >>> from maml_jax.data.classes import select
      >>> ten = select(classes, range(10))  # doctest: +SKIP
    """
    indices = np.asarray(indices, dtype=np.int64)
    return dataclasses.replace(
        classes,
        images=classes.images[indices],
        counts=np.asarray(classes.counts)[indices],
        class_names=tuple(classes.class_names[i] for i in indices),
        groups=tuple(classes.groups[i] for i in indices),
    )
