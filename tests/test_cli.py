"""The command line: what it says, what it refuses, with which exit code.

What the commands do is in test_runs.py, test_glyph_run.py and test_signals.py.
"""

import dataclasses
import inspect
import pathlib
import re
import shutil
import warnings

import jax
import pytest

from maml_jax import checkpoints, cli, exit_codes, runs, training
from maml_jax.nonfinite import NonFiniteTaskError
from maml_jax.recipes import PRESETS, Config, named_by_tasks

COMMANDS = ["train", "resume", "evaluate", "plot", "prepare", "presets", "bench", "diagnose"]


@pytest.fixture(autouse=True)
def settings_as_before():
    """`main` tells JAX where to keep compiled programs, for the whole process."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: jax.config.values[name] for name in names}
    jax.config.update("jax_compilation_cache_dir", "not used")
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def fails(words, code, capsys):
    """Runs a command that must exit with a code; returns what it said on standard error."""
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    said = capsys.readouterr()
    assert ended.value.code == code
    assert "Traceback" not in said.err + said.out
    return said.err


PROTOCOL = {"num_tasks": 1000, "num_steps": 10, "transductive": True}


@pytest.mark.parametrize(
    ("flags", "changes"),
    [
        ([], {}),
        (["--num-steps", "0"], {"num_steps": 0}),
        (["--num-tasks=30", "--no-transductive"], {"num_tasks": 30, "transductive": False}),
        (["--transductive"], {}),
    ],
)
@pytest.mark.parametrize("flags_first", [True, False])
def test_protocol_is_that_of_the_run_but_for_the_flags(
    tmp_path, monkeypatch, capsys, flags, changes, flags_first
):
    """Oracle: the settings of the preset in config.json."""
    runs.write_config(tmp_path, PRESETS["sinusoid-10shot-finn2017"])
    asked = []

    def evaluate_run(run_dir, **protocol):
        asked.append((run_dir, protocol))
        return "what came out"

    monkeypatch.setattr(runs, "evaluate_run", evaluate_run)
    run = [str(tmp_path)]
    cli.main(["evaluate", *(flags + run if flags_first else run + flags)])
    assert asked == [(tmp_path, {**PROTOCOL, **changes})]
    assert capsys.readouterr().out == "what came out\n"


def test_not_transductive_run_is_evaluated_so(tmp_path, monkeypatch):
    config = dataclasses.replace(PRESETS["sinusoid-10shot-finn2017"], transductive=False)
    runs.write_config(tmp_path, config)
    asked = []
    monkeypatch.setattr(runs, "evaluate_run", lambda run_dir, **protocol: asked.append(protocol))
    cli.main(["evaluate", str(tmp_path)])
    cli.main(["evaluate", str(tmp_path), "--transductive"])
    assert asked == [{**PROTOCOL, "transductive": False}, PROTOCOL]


def test_plot_names_the_files(monkeypatch, capsys):
    drawn = [pathlib.Path("run/learning_curve.png"), pathlib.Path("run/inner_steps.png")]
    monkeypatch.setattr(runs, "plot_run", lambda run_dir: drawn if run_dir.name == "run" else [])
    cli.main(["plot", "run"])
    assert capsys.readouterr().out == "run/learning_curve.png\nrun/inner_steps.png\n"


def test_a_folder_with_a_run_is_refused(tmp_path, capsys):
    """The command that is offered can be pasted, also if the name has a space."""
    run_dir = tmp_path / "my [first] run"
    runs.write_config(run_dir, PRESETS["sinusoid-10shot-finn2017"])
    assert fails(["train", "sinusoid-10shot-finn2017", "--run-dir", run_dir], 1, capsys) == (
        f"error: {run_dir} holds a run already; go on with `maml-jax resume '{run_dir}'`, or name "
        "another folder with --run-dir.\n"
    )


def test_without_run_dir_the_next_number_is_taken(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "sinusoid-10shot-finn2017").mkdir(parents=True)
    started = []

    def start_run(config, run_dir, *, console):
        started.append((config, str(run_dir)))
        raise ValueError("enough.")

    monkeypatch.setattr(runs, "start_run", start_run)
    assert fails(["train", "sinusoid-10shot-finn2017"], 1, capsys) == "error: enough.\n"
    assert fails(["train", "--way", "7"], 1, capsys) == "error: enough.\n"
    assert fails(["train", "--seed", "7"], 1, capsys) == "error: enough.\n"
    assert started == [
        (PRESETS["sinusoid-10shot-finn2017"], "runs/sinusoid-10shot-finn2017-2"),
        (dataclasses.replace(PRESETS["glyphs-5way-1shot"], way=7), "runs/glyphs-7way-1shot"),
        (dataclasses.replace(PRESETS["glyphs-5way-1shot"], seed=7), "runs/glyphs-5way-1shot"),
    ]


@pytest.mark.parametrize(
    ("preset", "changes", "name", "reported"),
    [
        ("omniglot-5way-1shot-finn2017", {"seed": 7, "features": 32}, None, True),
        ("omniglot-5way-1shot-finn2017", {"shot": 3}, "omniglot-5way-3shot", False),
        ("omniglot-5way-1shot-finn2017", {"rotations": False}, "omniglot-5way-1shot", False),
        ("sinusoid-10shot-finn2017", {"shot": 5}, "sinusoid-5shot", False),
        ("glyphs-5way-1shot", {"dataset": "image_folder"}, "imagefolder-5way-1shot", False),
    ],
)
def test_other_tasks_take_neither_name_nor_figure_of_the_preset(preset, changes, name, reported):
    config = dataclasses.replace(PRESETS[preset], **changes)
    assert named_by_tasks(preset, config) == (
        name or preset,
        dataclasses.replace(config, reported=PRESETS[preset].reported if reported else ""),
    )
    own = dataclasses.replace(config, reported="mine")
    assert named_by_tasks(preset, own) == (name or preset, own)


def test_a_warning_is_said_without_our_source(monkeypatch, capsys):
    def plot_run(run_dir):
        warnings.warn("Fell back to the checkpoint of step 2: a bit.", stacklevel=2)
        return []

    monkeypatch.setattr(runs, "plot_run", plot_run)
    show = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        cli.main(["plot", "run"])
    assert capsys.readouterr().err == "warning: Fell back to the checkpoint of step 2: a bit.\n"
    assert warnings.showwarning is show


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
    folder = "runs/sinusoid-10shot-finn2017, or a name of other tasks' own, or the next number"
    assert f"(default: {folder})" in said


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


def test_the_page_on_reliability_names_exactly_these_exit_codes():
    """Oracle: the table that tells what to do after each."""
    page = pathlib.Path(__file__).resolve().parents[1] / "docs" / "reliability.md"
    named = re.findall(r"^\| (\d+) \|", page.read_text(), re.MULTILINE)
    ours = [code for code in vars(exit_codes).values() if type(code) is int]
    assert [int(code) for code in named] == [0, *ours]
    assert set(exit_codes.AFTER_SIGNAL.values()) <= set(ours)


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
    name, folder = "jax_compilation_cache_dir", tmp_path / "cache"
    monkeypatch.setenv("MAML_JAX_CACHE_DIR", str(folder))
    cli.main(["presets"])
    assert jax.config.values[name] == "not used"
    assert not folder.exists()
    jax.config.update(name, None)
    cli.main(["presets"])
    assert jax.config.values[name] == str(folder / "compiled")
    assert (folder / "compiled").stat().st_mode & 0o777 == 0o700
    jax.config.update(name, None)
    shutil.rmtree(folder)
    folder.write_text("a file in the way")
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        cli.main(["presets"])
    assert capsys.readouterr().err.startswith("warning: compiled programs are not kept for the")
    assert jax.config.values[name] is None
