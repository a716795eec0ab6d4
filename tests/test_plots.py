"""Figures: what is drawn is what was passed, and what is written is a small PNG."""

import doctest

import numpy as np
import pytest
from PIL import Image

from maml_jax import plots
from maml_jax.plots import _style, curves, images

EMPTY = np.zeros(0)


def curve(**changes):
    values = {
        "train_steps": np.arange(6.0),
        "train_values": np.linspace(0.2, 0.7, 6),
        "validation_steps": [0, 5],
        "validation_means": [0.2, 0.6],
        "validation_half_widths": [0.02, 0.03],
        "metric": "accuracy",
        "title": "Accuracy rises",
    }
    return {**values, **changes}


def regression_task():
    x = np.linspace(-5.0, 5.0, 40)
    return {
        "support_inputs": x[::10],
        "support_targets": np.sin(x[::10]),
        "curve_inputs": x,
        "truth": np.sin(x),
        "before": np.sin(x) + 2.0,
        "after": {1: np.sin(x) + 1.0, 10: np.sin(x) + 0.1},
    }


def image_task(way=5, shot=1, num_queries=3, channels=1):
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(way), num_queries)
    return {
        "support_images": random.normal(size=(way * shot, 8, 8, channels)),
        "support_labels": np.repeat(np.arange(way), shot),
        "query_images": random.normal(size=(len(labels), 8, 8, channels)),
        "query_labels": labels,
        "before": np.eye(way)[np.zeros(len(labels), int)],
        "after": np.eye(way)[labels],
    }


def texts(axes):
    return [text.get_text() for text in axes.texts]


def assert_png(path):
    """The oracle is Pillow's decoder, and the limit of 200 KB."""
    assert path.stat().st_size < 200_000
    with Image.open(path) as image:
        assert image.format == "PNG"
        image.load()
        assert 300 < image.width < 1400
        assert 80 < image.height < 2000
        assert len(set(image.convert("L").tobytes())) > 10


@pytest.mark.parametrize("name", plots.__all__)
def test_examples(name):
    """Each docstring example runs; one per public function."""
    (example,) = doctest.DocTestFinder().find(getattr(plots, name), name)
    results = doctest.DocTestRunner().run(example)
    assert results.failed == 0
    assert results.attempted > 0


def test_learning_curve_draws_what_it_is_given():
    """The lines, the band and the labels hold the numbers passed in."""
    steps, values = np.arange(3.0), np.array([0.2, 0.9, 0.4])
    validation = [np.array(column) for column in ([0.0, 2.0], [0.3, 0.5], [0.1, 0.05])]
    figure = curves._draw_learning_curve(
        [steps, values], validation, "accuracy", {"pixels": 0.521}, (0.45, 0.02), "A title"
    )
    axes = figure.axes[0]
    baseline, raw, smooth, means = axes.lines[:4]
    assert set(baseline.get_ydata()) == {0.521}
    np.testing.assert_array_equal(raw.get_ydata(), values)
    np.testing.assert_array_equal(smooth.get_ydata(), values)
    np.testing.assert_array_equal(means.get_xydata(), np.stack(validation[:2], 1))
    band = axes.collections[0].get_paths()[0].vertices
    np.testing.assert_allclose([band[:, 1].min(), band[:, 1].max()], [0.2, 0.55], rtol=1e-12)
    assert axes.get_title("left") == "A title"
    expected = {"pixels 52.1%", "meta-validation 50.0 ± 5.0%", "meta-test 45.0 ± 2.0%"}
    assert expected < set(texts(axes))
    assert axes.get_ylim()[0] >= -0.02
    assert axes.get_ylim()[1] <= 1.03


def test_rolling_median_ignores_spikes_and_gaps():
    """A constant with rare spikes and gaps has that constant as its rolling median."""
    values = np.full(1200, 3.0)
    values[::50], values[25::50] = 1e9, np.nan
    steps, medians = curves._rolling_median(np.arange(1200.0), values)
    np.testing.assert_array_equal(medians, np.full(len(steps), 3.0))
    assert len(steps) == 300


def test_loss_is_on_a_log_axis_and_accuracy_is_not():
    columns = [np.array(column) for column in ([0.0, 1.0], [0.1, 0.9], [0.01, 0.01])]
    scales = [
        curves._draw_inner_steps(columns, metric, 1, "").axes[0].get_yscale()
        for metric in ("accuracy", "mean squared error")
    ]
    assert scales == ["linear", "log"]


def test_labels_on_the_right_do_not_overlap():
    """Six equal baselines are written at six heights, at least a line (5%) apart."""
    baselines = {f"baseline {i}": 0.5 for i in range(6)}
    nothing = [EMPTY] * 3
    figure = curves._draw_learning_curve(nothing[:2], nothing, "accuracy", baselines, None, "")
    labels = [t for t in figure.axes[0].texts if t.get_text().startswith("baseline")]
    heights = np.sort([label.xyann[1] for label in labels])
    assert len(heights) == 6
    assert np.diff(heights).min() > 0.05


@pytest.mark.parametrize("trained", [1, 3])
@pytest.mark.parametrize("metric", ["accuracy", "mean squared error"])
def test_inner_steps_marks_the_trained_number(metric, trained):
    columns = [np.arange(4.0), np.array([0.2, 0.6, 0.7, 0.75]), np.full(4, 0.01)]
    axes = curves._draw_inner_steps(columns, metric, trained, "Fast").axes[0]
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), columns[1])
    assert set(axes.lines[1].get_xdata()) == {trained}
    steps = "1 step" if trained == 1 else "3 steps"
    assert texts(axes)[0] == f"meta-trained with {steps}"
    assert _style.metric_text(metric, columns[1][trained]) in texts(axes)


def test_regression_title_is_the_squared_error():
    """Offsets of 2 and 0.1 from the truth are squared errors of 4 and 0.01."""
    task = regression_task()
    axes = curves._draw_regression([task]).axes[0]
    assert axes.get_title("left") == "MSE 4 → 0.01"
    truth, before, first, last, support = axes.lines
    for line, values in zip(
        (truth, before, first, last, support),
        (task["truth"], task["before"], *task["after"].values(), task["support_targets"]),
        strict=True,
    ):
        np.testing.assert_array_equal(line.get_ydata(), values)
    assert last.get_label() == "after 10 inner steps"


def test_a_diverged_prediction_does_not_set_the_range():
    task = {**regression_task(), "after": {1: np.full(40, 1e30)}}
    low, high = curves._draw_regression([task]).axes[0].get_ylim()
    assert -2.5 < low < high < 3.0


def test_image_marks_match_the_predictions():
    """Before, all queries are put in class 0 (1 in 5 right); after, all are right."""
    axes = images._draw_images([image_task()]).axes[0]
    written = texts(axes)
    assert "Task 1: accuracy 20% → 100% after adaptation" in written
    assert "10 of 15 query images shown" in written
    assert written.count("0 ✗") == 8
    assert [written.count(f"{label} ✓") for label in range(5)] == [4, 2, 2, 2, 2]
    assert len(axes.images) == 5 + 10


def test_images_show_at_most_five_shots():
    axes = images._draw_images([image_task(way=2, shot=7)]).axes[0]
    assert len(axes.images) == 2 * 5 + 4
    assert len({tuple(image.get_extent()) for image in axes.images}) == 2 * 5 + 4


def test_colour_images_are_stretched_to_the_unit_range():
    task = image_task(way=2, shot=1, num_queries=2, channels=3)
    arrays = [image.get_array() for image in images._draw_images([task]).axes[0].images]
    assert min(a.min() for a in arrays) == 0.0
    assert max(a.max() for a in arrays) == 1.0


@pytest.mark.parametrize("metric", ["accuracy", "mean squared error"])
@pytest.mark.parametrize("gaps", [False, True])
def test_curves_are_small_png_files(tmp_path, metric, gaps):
    nan = {"train_values": np.full(6, np.nan), "test": (np.nan, np.nan), "validation_steps": []}
    nan |= {"validation_means": [], "validation_half_widths": [], "baselines": {"a": np.nan}}
    full = {"test": (0.55, 0.02), "baselines": {"a long name of a baseline, in words": 0.3}}
    changes = {**(nan if gaps else full), "metric": metric}
    path = plots.learning_curve(tmp_path / "new" / "curve.png", **curve(**changes))
    assert path == tmp_path / "new" / "curve.png"
    assert_png(path)
    means = [np.nan, np.inf, np.nan] if gaps else [0.2, 0.5, 0.6]
    path = plots.inner_steps(
        tmp_path / "steps.png", steps=[0, 1, 2], means=means, half_widths=[np.nan, 0.1, 0.1],
        metric=metric, trained_steps=2, title="",
    )  # fmt: skip
    assert_png(path)


@pytest.mark.parametrize("num_tasks", [1, 5])
def test_regression_is_a_small_png_file(tmp_path, num_tasks):
    tasks = [regression_task() for _ in range(num_tasks)]
    tasks[0]["before"] = np.full(40, np.nan)
    assert_png(plots.regression_adaptation(tmp_path / "sine.png", tasks=tasks))


@pytest.mark.parametrize(("way", "shot", "channels"), [(5, 1, 1), (5, 5, 3), (20, 1, 1)])
def test_images_are_a_small_png_file(tmp_path, way, shot, channels):
    """Colour noise, which does not compress, is the hardest case for the limit."""
    tasks = [image_task(way, shot, 3, channels)] * (2 if way > 10 else 4)
    tasks[0]["after"][0] = np.nan
    tasks[0]["support_images"][0] = np.nan
    assert_png(plots.image_adaptation(tmp_path / "images.png", tasks=tasks))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_values": [1.0]}, r"train_steps, train_values must have equal lengths, got 6, 1:"),
        ({"validation_means": []}, "validation_half_widths must have equal lengths, got 2, 0, 2:"),
    ],
)
def test_curve_lengths_must_agree(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        plots.learning_curve(tmp_path / "curve.png", **curve(**changes))


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (plots.learning_curve, curve()),
        (
            plots.inner_steps,
            {"steps": [0, 1], "means": [0.2, 0.5], "half_widths": [0.1, 0.1]}
            | {"metric": "accuracy", "trained_steps": 1, "title": ""},
        ),
        (plots.regression_adaptation, {"tasks": [regression_task()]}),
        (plots.image_adaptation, {"tasks": [image_task()]}),
    ],
)
def test_the_file_must_be_a_png(tmp_path, monkeypatch, function, arguments):
    """The suffix is checked before a figure is drawn or a folder is made."""
    drawn = []
    monkeypatch.setattr(curves, "new_figure", lambda *_, **__: drawn.append("curves"))
    monkeypatch.setattr(images, "new_figure", lambda *_, **__: drawn.append("images"))
    with pytest.raises(ValueError, match=r'path must end in "\.png", got ".*figure\.pdf":'):
        function(tmp_path / "new" / "figure.pdf", **arguments)
    assert not drawn
    assert not list(tmp_path.iterdir())


def test_number_of_tasks(tmp_path):
    with pytest.raises(ValueError, match="must hold 1 to 6 tasks, got 7:"):
        plots.regression_adaptation(tmp_path / "a.png", tasks=[regression_task()] * 7)
    with pytest.raises(ValueError, match="must hold 1 to 4 tasks, got 0:"):
        plots.image_adaptation(tmp_path / "a.png", tasks=[])


def test_regression_lengths_must_agree(tmp_path):
    task = {**regression_task(), "after": {3: EMPTY}}
    with pytest.raises(ValueError, match="truth, after 3 steps must have equal lengths, got 40, 0"):
        plots.regression_adaptation(tmp_path / "a.png", tasks=[task])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"support_images": np.zeros((5, 8, 8))}, r"support_images must have shape .*\(5, 8, 8\):"),
        ({"support_labels": [0]}, "support_images, support_labels must have equal lengths"),
        ({"query_labels": np.arange(15)}, r"query_labels must be in 0\.\.4, got 0 to 14:"),
        ({"after": np.eye(5)}, "query_labels, after must have equal lengths, got 15, 5:"),
        ({"after": np.arange(15)}, r"after must have shape \[Q, way\], got \(15,\):"),
    ],
)
def test_image_shapes_must_agree(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        plots.image_adaptation(tmp_path / "a.png", tasks=[{**image_task(), **changes}])
