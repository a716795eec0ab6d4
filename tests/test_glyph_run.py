"""One small run on images, from `maml-jax train` to the pictures: what it says and shows."""

import dataclasses
import functools
import json
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from maml_jax import cli, pictures, plots, runs
from maml_jax.data.glyphs import draw_glyphs
from maml_jax.losses import predict
from maml_jax.recipes import PRESETS
from training_runs import quick_compilation  # noqa: F401

pytestmark = pytest.mark.slow

FLAGS = {
    "inner": "fomaml",
    "image_size": 12,
    "features": 4,
    "meta_batch_size": 2,
    "query_shot": 2,
    "test_query_shot": 2,
    "inner_steps": 1,
    "test_inner_steps": 0,
    "outer_steps": 2,
    "steps_per_call": 1,
    "validation_tasks": 3,
    "test_tasks": 3,
    "seed": 1,
}


@pytest.fixture(scope="module")
def glyph_run(tmp_path_factory):
    """The folder of a finished run, and what its training said."""
    folder = tmp_path_factory.mktemp("glyphs")
    run_dir = folder / "a [run]"  # Neither the space nor what looks like markup may be lost.
    few = functools.partial(draw_glyphs, systems=("Hebrew", "Ogham", "Greek"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["maml_jax.data.glyphs"], "draw_glyphs", few)
        patch.setenv("MAML_JAX_CACHE_DIR", str(folder / "cache"))
        out = folder / "out.txt"
        with open(out, "w") as written:
            patch.setattr(sys, "stdout", written)
            flags = [f"--{name.replace('_', '-')}={value}" for name, value in FLAGS.items()]
            words = ["train", "glyphs-5way-1shot", "--rotations", *flags]
            cli.main([*words, "--run-dir", str(run_dir)])
        patch.undo()
        # The drawings are kept, so later commands need no patch.
        patch.setenv("MAML_JAX_CACHE_DIR", str(folder / "cache"))
        yield run_dir, out.read_text()


def test_training_says_what_came_out(glyph_run):
    """Oracle: result.json and the log."""
    run_dir, said = glyph_run
    lines = said.splitlines()
    result = json.loads((run_dir / "result.json").read_text())
    assert lines[0].startswith(f"glyphs-5way-1shot in {run_dir}, on ")
    (validation,) = [line for line in lines if "validation" in line]
    assert validation.startswith("step      2: validation accuracy ")
    assert validation.endswith(" after 0 inner steps")
    assert result["summary"] in lines
    assert result["summary"].endswith(
        "after 0 inner steps (3 tasks, 5 support and 10 query examples, transductive, seed 1)"
    )
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if "│" in line]
    accuracy, half_width = result["test"]["mean"], result["test"]["half_widths"]["accuracy"][-1]
    assert ["meta-learned", f"{accuracy:.2%}", f"± {half_width:.2%}"] in cells
    baselines = ["nearest neighbour in pixels", "untrained"]
    assert list(result["baselines"]) == baselines
    for name in baselines:
        assert [name, f"{result['baselines'][name]:.2%}", ""] in cells
        assert 0.0 <= result["baselines"][name] <= 1.0
    assert lines[-1].endswith(f"result.json and pictures are in {run_dir}")
    assert "\x1b" not in said
    assert "━" not in said.replace("┏", "").split("meta-test")[0]
    for name in ("learning_curve.png", "inner_steps.png", "adaptation.png"):
        assert (run_dir / name).stat().st_size < 200_000
        Image.open(run_dir / name).verify()


def test_flags_become_the_configuration(glyph_run):
    """Oracle: the preset with the flags' values."""
    assert runs.read_config(glyph_run[0]) == dataclasses.replace(
        PRESETS["glyphs-5way-1shot"], rotations=True, **FLAGS
    )


def test_evaluate_says_the_result_again(glyph_run, capsys):
    run_dir, _ = glyph_run
    cli.main(["evaluate", str(run_dir)])
    result = json.loads((run_dir / "result.json").read_text())
    assert capsys.readouterr().out == result["summary"] + "\n"


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws the adaptation of a problem; returns what would be in the picture."""

    def draw(problem, progress):
        panels = []
        monkeypatch.setattr(plots, "image_adaptation", lambda path, tasks: panels.extend(tasks))
        pictures._draw_images(tmp_path / "adaptation.png", problem, progress.best_params)
        return panels

    return draw


def test_picture_shows_what_is_evaluated(glyph_run, drawn):
    """Oracle: the accuracy on the three test tasks, which the picture shows."""
    problem, progress = runs.load_run(glyph_run[0])
    result = json.loads((glyph_run[0] / "result.json").read_text())
    panels = drawn(problem, progress)
    for moment in ("before", "after"):  # The same, as there are no inner steps at test time.
        right = [panel[moment].argmax(axis=1) == panel["query_labels"] for panel in panels]
        assert np.mean(right) == pytest.approx(result["test"]["mean"], abs=1e-6)


@pytest.mark.parametrize("transductive", [True, False])
def test_picture_judges_each_query_alone_if_the_protocol_does(glyph_run, drawn, transductive):
    """Oracle: the model on a support set and a part of its queries only."""
    problem, progress = runs.load_run(glyph_run[0])
    config = dataclasses.replace(problem.config, transductive=transductive)
    panel = drawn(dataclasses.replace(problem, config=config), progress)[0]

    @jax.jit
    def three_queries(support, query):
        few = jax.tree.map(lambda leaf: leaf[:3], query)
        few = dataclasses.replace(few, reference=support)
        return jax.nn.softmax(predict(problem.apply_fn, progress.best_params, few))

    task = problem.meta_test(jax.random.fold_in(problem.key("test"), 0))
    alone = np.asarray(three_queries(task.support, task.query))
    assert (np.abs(panel["after"][:3] - alone).max() < 1e-5) == (not transductive)
