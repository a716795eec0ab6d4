"""Figures of few-shot image tasks: support images, and query images with predictions.

The package's docstring says what all figures share: metrics, half-widths, gaps and errors.
"""

import math
import pathlib

import numpy as np

from maml_jax.plots._style import (
    GREEN,
    GREY,
    INK,
    VERMILLION,
    PathLike,
    Tasks,
    check_lengths,
    check_num_tasks,
    new_figure,
    png_path,
    save,
)

_MAX_SHOTS, _MAX_QUERIES = 5, 10


def image_adaptation(path: PathLike, *, tasks: Tasks) -> pathlib.Path:
    """Draws support images, and query predictions before and after adaptation.

    At most 5 shots and `min(2 way, 10)` query images are shown, class by class; accuracies
    are over all Q. One range of pixel values, that of all tasks, is stretched to black-white.

    Args:
      path: the PNG file to write.
      tasks: 1 to 4 mappings with `support_images [S, H, W, C]` (C is 1 or 3),
        `support_labels [S]` in 0..way-1, `query_images [Q, H, W, C]`, `query_labels [Q]`, and
        class probabilities `before [Q, way]` and `after [Q, way]`.

    Example:
      >>> import tempfile
      >>> import numpy as np
      >>> from maml_jax.plots import image_adaptation
      >>> images = np.random.default_rng(0).random((2, 8, 8, 1))
      >>> task = dict(support_images=images, support_labels=[0, 1], query_images=images,
      ...     query_labels=[0, 1], before=np.full((2, 2), 0.5), after=np.eye(2))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     image_adaptation(f"{folder}/images.png", tasks=[task]).name
      'images.png'
    """
    file = png_path(path)
    check_num_tasks(tasks, 4)
    return save(_draw_images(tasks), file)


def _draw_images(tasks):
    sets = [(_examples(task, "support"), _examples(task, "query")) for task in tasks]
    pixels = np.concatenate([images.ravel() for pair in sets for images, _ in pair])
    pixels = pixels[np.isfinite(pixels)] if np.isfinite(pixels).any() else np.zeros(1)
    view = {"cmap": "gray", "vmin": pixels.min(), "vmax": pixels.max()}
    way = max(np.shape(task["before"])[-1] for task in tasks)
    shots = min(_MAX_SHOTS, max(np.bincount(labels).max() for (_, labels), _ in sets))
    num_queries = min(2 * way, _MAX_QUERIES, max(len(labels) for _, (_, labels) in sets))
    columns = 5 if way <= 10 and shots > 2 else 10
    left, top = (0.0, shots + 1.5) if way > 10 else (way + 1.8, 0.8)
    width = max(way, left + min(columns, num_queries), 11.8) + 1.5
    height = max(top + 2.4 * math.ceil(num_queries / columns), shots + 1.5) + 0.2
    figure = new_figure(0.48 * width, 0.48 * height * len(tasks))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-1.3, width - 1.3), ylim=(height * len(tasks), 0))
    axes.set_axis_off()
    for i, (task, (support, query)) in enumerate(zip(tasks, sets, strict=True)):
        predicted = [_predictions(task, name, len(query[1])) for name in ("before", "after")]
        before, after = (f"{np.mean(classes == query[1]):.0%}" for classes in predicted)
        shown = f"{min(num_queries, len(query[1]))} of {len(query[1])} query images shown"
        title = f"Task {i + 1}: accuracy {before} → {after} after adaptation"
        y = height * i + 0.45
        axes.text(0, y, title, fontsize=10, weight="bold", color=INK, va="center")
        text = {"fontsize": 8, "color": GREY, "va": "center"}
        axes.text(width - 1.4, y, shown, ha="right", **text)
        _support_grid(axes, *support, height * i + 0.8, view)
        corner = left, height * i + top
        _query_grid(axes, *query, predicted, corner, columns, num_queries, view)
    return figure


def _query_grid(axes, images, labels, predicted, corner, columns, num_queries, view):
    text = {"fontsize": 8, "color": GREY, "va": "center"}
    chosen = np.lexsort((labels, _ranks(labels)))[:num_queries]
    for k, j in enumerate(chosen[np.argsort(labels[chosen], kind="stable")]):
        x, y = corner[0] + k % columns, corner[1] + 2.4 * (k // columns)
        if k % columns == 0:
            for name, dy in (("class", 0.2), ("query", 0.9), ("before", 1.6), ("after", 1.93)):
                axes.text(x - 0.15, y + dy, name, ha="right", **text)
        axes.text(x + 0.5, y + 0.2, str(labels[j]), ha="center", **text)
        _image(axes, images[j], x, y + 0.4, view)
        for classes, dy in zip(predicted, (1.6, 1.93), strict=True):
            right = classes[j] == labels[j]
            mark = f"{classes[j] if classes[j] >= 0 else 'nan'} {'✓' if right else '✗'}"
            color = GREEN if right else VERMILLION
            axes.text(x + 0.5, y + dy, mark, ha="center", **{**text, "color": color})


def _support_grid(axes, images, labels, y, view):
    text = {"fontsize": 8, "color": GREY, "va": "center"}
    axes.text(-0.15, y + 0.2, "class", ha="right", **text)
    axes.text(-0.15, y + 0.9, "support", ha="right", **text)
    for label in np.unique(labels):
        axes.text(label + 0.5, y + 0.2, str(label), ha="center", **text)
    for image, label, rank in zip(images, labels, _ranks(labels), strict=True):
        if rank < _MAX_SHOTS:
            _image(axes, image, label, y + 0.4 + rank, view)


def _image(axes, image, x, y, view):
    from matplotlib.patches import Rectangle

    if image.shape[-1] == 3:  # matplotlib scales only grey images itself
        image = (image - view["vmin"]) / ((view["vmax"] - view["vmin"]) or 1.0)
        image = np.clip(np.nan_to_num(image), 0.0, 1.0)
    box = x + 0.04, x + 0.96, y + 0.96, y + 0.04
    limits = axes.axis()
    axes.imshow(image, extent=box, aspect="auto", **view)
    axes.axis(limits)  # imshow moves the limits to its own extent
    frame = {"fill": False, "edgecolor": "#bbbbbb", "linewidth": 0.6}
    axes.add_patch(Rectangle((x + 0.04, y + 0.04), 0.92, 0.92, **frame))


def _ranks(labels):
    """Counts, for each example, the earlier ones of its class: `[N]` to `[N]`."""
    return np.array([np.sum(labels[:i] == label) for i, label in enumerate(labels)], int)


def _examples(task, name):
    images, labels = np.asarray(task[f"{name}_images"], float), np.asarray(task[f"{name}_labels"])
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or not images.size:
        raise ValueError(
            f"{name}_images must have shape [N, H, W, C] with C 1 or 3, got {images.shape}: "
            "pass at least one image, channels last."
        )
    check_lengths({f"{name}_images": images, f"{name}_labels": labels})
    way = np.shape(task["before"])[-1]
    if labels.min() < 0 or labels.max() >= way:
        got = f"{labels.min()} to {labels.max()}"
        raise ValueError(f"{name}_labels must be in 0..{way - 1}, got {got}: relabel the classes.")
    return images, labels.astype(int)


def _predictions(task, name, num_queries):
    probabilities = np.asarray(task[name], float)
    if probabilities.ndim != 2:
        got = probabilities.shape
        raise ValueError(f"{name} must have shape [Q, way], got {got}: pass class probabilities.")
    check_lengths({"query_labels": np.empty(num_queries), name: probabilities})
    return np.where(np.isnan(probabilities).any(axis=1), -1, probabilities.argmax(axis=1))
