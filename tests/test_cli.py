"""The command line: what it says, what it refuses, with which exit code.

One small run on three writing systems of the glyphs is the subject of most tests.
"""

import dataclasses
import functools
import inspect
import json
import shutil
import sys
import warnings

import jax
import numpy as np
import pytest
from PIL import Image

from maml_jax import checkpoints, cli, pictures, plots, runs, training
from maml_jax.data.glyphs import draw_glyphs
from maml_jax.nonfinite import NonFiniteTaskError
from maml_jax.recipes import PRESETS, Config
from training_runs import quick_compilation  # noqa: F401

TRAIN = (
    "train glyphs-5way-1shot --image-size 12 --features 4 --meta-batch-size 2 --query-shot 2 "
    "--test-query-shot 2 --outer-steps 2 --steps-per-call 1 --validation-tasks 3 --test-tasks 3 "
    "--test-inner-steps 1 --rotations --seed 1"
)
COMMANDS = ["train", "resume", "evaluate", "plot", "prepare", "presets"]


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
            cli.main([*TRAIN.split(), "--run-dir", str(run_dir)])
        patch.undo()
        # The drawings are kept, so later commands need no patch.
        patch.setenv("MAML_JAX_CACHE_DIR", str(folder / "cache"))
        yield run_dir, out.read_text()


def fails(words, code, capsys):
    """Runs a command that must exit with a code; returns what it said on standard error."""
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    said = capsys.readouterr()
    assert ended.value.code == code
    assert "Traceback" not in said.err + said.out
    return said.err


def test_training_says_what_came_out(glyph_run):
    """Oracle: result.json and the log."""
    run_dir, said = glyph_run
    lines = said.splitlines()
    result = json.loads((run_dir / "result.json").read_text())
    assert lines[0].startswith(f"glyphs-5way-1shot in {run_dir}, on ")
    (validation,) = [line for line in lines if "validation" in line]
    assert validation.startswith("step      2: validation accuracy ")
    assert validation.endswith(" after 1 inner step")
    assert result["summary"] in lines
    assert result["summary"].endswith(
        "after 1 inner step (3 tasks, 5 support and 10 query examples, transductive, seed 1)"
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
    """Oracle: the preset with the flags' values; booleans are --rotations, --no-rotations."""
    assert runs.read_config(glyph_run[0]) == dataclasses.replace(
        PRESETS["glyphs-5way-1shot"],
        image_size=12,
        features=4,
        meta_batch_size=2,
        query_shot=2,
        test_query_shot=2,
        outer_steps=2,
        steps_per_call=1,
        validation_tasks=3,
        test_tasks=3,
        test_inner_steps=1,
        rotations=True,
        seed=1,
    )


def test_evaluate_by_another_protocol(glyph_run, capsys):
    """Oracle: the result's means after 0 and 1 steps; `evaluate_run` for the other."""
    run_dir, _ = glyph_run
    result = json.loads((run_dir / "result.json").read_text())
    cli.main(["evaluate", str(run_dir)])
    assert capsys.readouterr().out == result["summary"] + "\n"
    cli.main(["evaluate", "--num-steps", "0", str(run_dir)])
    shown = f"{100 * result['test']['means']['accuracy'][0]:.2f}%"
    said = capsys.readouterr().out
    assert said.startswith(f"accuracy {shown} ± ")
    assert " after 0 inner steps (3 tasks, " in said
    cli.main(["evaluate", str(run_dir), "--num-tasks", "4", "--no-transductive"])
    said = capsys.readouterr().out
    assert said.endswith("(4 tasks, 5 support and 10 query examples, not transductive, seed 1)\n")
    alone = runs.evaluate_run(run_dir, num_tasks=4, transductive=False)
    assert said == f"{alone}\n"


@pytest.mark.parametrize("transductive", [True, False])
def test_picture_shows_what_is_evaluated(glyph_run, monkeypatch, tmp_path, transductive):
    """Oracle: the accuracy on the three tasks that the picture shows."""
    problem, progress = runs.load_run(glyph_run[0])
    config = dataclasses.replace(problem.config, transductive=transductive)
    problem = dataclasses.replace(problem, config=config)
    drawn = {}
    monkeypatch.setattr(plots, "image_adaptation", lambda path, tasks: drawn.update(tasks=tasks))
    pictures._draw_images(tmp_path / "adaptation.png", problem, progress.best_params)
    measured = problem.evaluate(progress.best_params, "test", num_tasks=3)
    for index, moment in ((0, "before"), (-1, "after")):
        right = [panel[moment].argmax(axis=1) == panel["query_labels"] for panel in drawn["tasks"]]
        assert np.mean(right) == pytest.approx(measured.means["accuracy"][index], abs=1e-6)


def test_plot_names_the_files(glyph_run, capsys):
    run_dir, _ = glyph_run
    cli.main(["plot", str(run_dir)])
    names = ("learning_curve.png", "inner_steps.png", "adaptation.png")
    assert capsys.readouterr().out.splitlines() == [str(run_dir / name) for name in names]


def test_a_folder_with_a_run_is_refused_and_resume_evaluates_again(glyph_run, capsys):
    run_dir, _ = glyph_run
    before = json.loads((run_dir / "result.json").read_text())
    said = fails([*TRAIN.split(), "--run-dir", run_dir], 1, capsys)
    assert said == (
        f"error: {run_dir} holds a run already; go on with `maml-jax resume '{run_dir}'`, or name "
        "another folder with --run-dir.\n"
    )
    cli.main(["resume", str(run_dir)])
    assert capsys.readouterr().out.startswith("All 2 steps are done: evaluating again.\n")
    assert json.loads((run_dir / "result.json").read_text()) == before


def test_damaged_checkpoint_is_a_warning_without_our_source(glyph_run, tmp_path, capsys):
    """It is said on standard error, once; the checkpoint before is used."""
    run_dir = tmp_path / "damaged"
    shutil.copytree(glyph_run[0], run_dir)
    (problem, progress), saved = runs.load_run(run_dir), run_dir / "checkpoints"
    settings = runs.checked_settings(problem.config)
    checkpoints.save(saved, 3, progress, config=settings)
    (saved / "00000003" / "manifest.json").write_text("{}")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        cli.main(["evaluate", str(run_dir), "--num-steps", "0"])
    said = capsys.readouterr()
    assert said.err.startswith("warning: Fell back to the checkpoint of step 2: ")
    assert "checkpoints.py" not in said.err
    assert said.out.startswith("accuracy ")


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"], ["help"]])
def test_help_names_every_command(words, capsys):
    cli.main(words)
    said = capsys.readouterr().out
    assert [line.split()[1] for line in said.splitlines() if line.startswith("  maml")] == COMMANDS
    assert "glyphs-5way-1shot" in said


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(command, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: maml-jax {command} ")
    assert len(said.splitlines()) > 5


def test_help_of_train_describes_every_flag(capsys):
    """Oracle: the docstring of `Config`, up to where the lines of the help are folded."""
    with pytest.raises(SystemExit):
        cli.main(["train", "sinusoid-10shot-finn2017", "--help"])
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    attributes = inspect.getdoc(Config).split("Attributes:")[1].split("Example:")[0]
    for entry in attributes.strip().split("\n  "):
        if entry.startswith("  ") or ": " not in entry:
            continue
        name, text = entry.strip().split(": ", 1)
        assert f"--{name.replace('_', '-')}" in said
        assert " ".join(text.split()[:6]) in said, name
    assert "--transductive, --no-transductive" in said
    assert "(default: 70000)" in said  # That of this preset.
    assert "(default: runs/sinusoid-10shot-finn2017, or the next number)" in said


def test_presets_are_never_cut(capsys, monkeypatch):
    """Every name is whole at the start of a line, within 85 columns."""
    monkeypatch.setenv("COLUMNS", "40")
    cli.main(["presets"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.split()[0] in PRESETS] == list(PRESETS)
    for name, config in PRESETS.items():
        (row,) = [row for row in lines if row.split()[0] == name]
        steps = f"{config.inner_steps} / {config.test_inner_steps}"
        shown = f"{config.inner_learning_rate:g} {steps} {config.meta_batch_size} "
        assert " ".join(row.split()) == f"{name} {shown}{config.outer_steps:,}"
        if config.reported:
            assert f"    reported: {config.reported}" == lines[lines.index(row) + 1]
    assert max(map(len, lines)) <= 85


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["trian"], 2, "there is no command 'trian'; .* did you mean 'train'?"),
        (["train", "omniglot"], 2, "there is no preset 'omniglot'; `maml-jax presets` lists them"),
        (["train", "glyphs-5way-1shit"], 2, "did you mean 'glyphs-5way-1shot'?"),
        (["train", "--no-such-flag"], 2, "Unrecognized options: --no-such-flag"),
        (["train", "--way", "few"], 2, "invalid literal for int"),
        (["train", "--way", "1"], 2, "way must be at least 2, got 1"),
        (["train", "--inner", "mamal"], 2, "invalid choice 'mamal'"),
        (["train", "--dataset", "sinusoid"], 1, "model mlp is for the sinusoid"),
        (["train", "--dataset", "image_folder"], 1, "image_folder needs --data-dir"),
        (["resume"], 2, "RUN"),
        (["resume", "no_such_run"], 1, "no_such_run holds no run"),
        (["evaluate"], 2, "RUN"),
        (["evaluate", "no_such_run"], 1, "no_such_run holds no run"),
        (["evaluate", "no_such_run", "--num-steps", "x"], 2, "invalid literal for int"),
        (["plot", "no_such_run"], 1, "no_such_run holds no run"),
        (["plot", "one", "two"], 2, "Unrecognized options: two"),
        (["prepare", "mnist"], 2, "invalid choice 'mnist'"),
        (["presets", "all"], 2, "Unrecognized options: all"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage(words, code, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = " ".join(fails(words, code, capsys).replace("│", " ").split())
    assert message.split(" .* ")[0] in said
    assert message.split(" .* ")[-1] in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (training.TrainingStopped(7, 15), 75, ""),
        (training.TrainingStopped(7, 2), 130, ""),
        (KeyboardInterrupt(), 130, "error: interrupted.\n"),
        (MemoryError("memory ran out."), 76, "error: memory ran out.\n"),
        (training.DivergedError("it diverged."), 1, "error: it diverged.\n"),
        (checkpoints.CheckpointCorruptError("a bit."), 1, "error: a bit.\n"),
        (OSError(28, "No space left on device", "log"), 1, "No space left on device: 'log'"),
        (
            NonFiniteTaskError(step=3, task_indices=[1], reason="because.", state=None),
            1,
            "error: outer step 3: the loss or gradient of task [1]",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_exit_codes(error, code, message, capsys, monkeypatch, tmp_path):
    """Whatever ends a run; how to go on is said if there is something to go on with."""

    def start_run(config, run_dir, *, console):
        runs.write_config(run_dir, config)
        raise error

    monkeypatch.setattr(runs, "start_run", start_run)
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "--run-dir", str(tmp_path)])
    said = capsys.readouterr()
    assert ended.value.code == code
    assert message in said.err
    assert (said.err == "") == (message == "")
    goes_on = isinstance(error, training.TrainingStopped | KeyboardInterrupt)
    assert (f"Go on with:\n  maml-jax resume {tmp_path}\n" in said.out) == goes_on
    saved = isinstance(error, training.TrainingStopped)
    assert ("after step 7; the state is saved." in said.out) == saved


def test_prepare_passes_on_what_it_is_told(capsys, monkeypatch):
    asked = []

    def prepare(name, *, data_dir):
        asked.append((name, data_dir))
        return "/there"

    monkeypatch.setattr(cli.data, "prepare", prepare)
    cli.main(["prepare", "omniglot"])
    cli.main(["prepare", "cifar100", "--data-dir", "/data"])
    assert asked == [("omniglot", None), ("cifar100", "/data")]
    assert capsys.readouterr().out.endswith("cifar100 is prepared in /there\n")


def test_compiled_programs_are_kept_where_only_the_user_can_write(tmp_path, monkeypatch, capsys):
    """Not where JAX was told another folder; without a folder, with a warning."""
    name = "jax_compilation_cache_dir"
    told = jax.config.values[name]
    monkeypatch.setenv("MAML_JAX_CACHE_DIR", str(tmp_path / "cache"))
    try:
        cli.main(["presets"])
        assert jax.config.values[name] == told
        jax.config.update(name, None)
        cli.main(["presets"])
        kept = tmp_path / "cache" / "compiled"
        assert jax.config.values[name] == str(kept)
        assert kept.stat().st_mode & 0o777 == 0o700
        jax.config.update(name, None)
        shutil.rmtree(tmp_path / "cache")
        (tmp_path / "cache").write_text("a file in the way")
        capsys.readouterr()
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            cli.main(["presets"])
        assert "warning: compiled programs are not kept" in capsys.readouterr().err
        assert jax.config.values[name] is None
    finally:
        jax.config.update(name, told)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
