"""Runs: what is in the folder, and what is done with it afterwards.

The oracle of the numbers is the same evaluation made from the library's own pieces.
"""

import concurrent.futures
import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import os
import shutil

import jax
import jax.numpy as jnp
import optax
import pytest
from PIL import Image
from rich.console import Console

import maml_jax as mj
from maml_jax import assembly, checkpoints, run_lock, runs, training
from maml_jax.metrics_log import append_metrics, read_metrics, truncate_metrics
from maml_jax.recipes import Config
from maml_jax.run_folder import checked_settings, resume_command, write_config
from training_runs import quick_compilation  # noqa: F401

pytestmark = pytest.mark.slow

PICTURES = ["learning_curve.png", "inner_steps.png", "adaptation.png"]
CONFIG = Config(
    dataset="sinusoid",
    model="mlp",
    features=4,
    inner="fomaml",
    inner_learning_rate=0.01,
    # More than at test time, so that the pictures cannot show the last of them.
    inner_steps=2,
    test_inner_steps=1,
    shot=5,
    query_shot=5,
    test_query_shot=8,
    meta_batch_size=2,
    outer_steps=9,
    steps_per_call=3,
    validate_every=5,
    checkpoint_every=5,
    validation_tasks=4,  # As many as at test: one program to compile for both.
    test_tasks=4,
    reported="nothing, it is a test",
)


def console():
    return Console(file=io.StringIO(), width=80)


def said(console):
    return console.file.getvalue()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run: its folder, its result, and what it said."""
    run_dir = tmp_path_factory.mktemp("runs") / "first"
    where = console()
    result = runs.start_run(CONFIG, run_dir, console=where)
    return run_dir, result, said(where)


@pytest.fixture
def copied(finished, tmp_path):
    """The same, in a folder that a test may change."""
    run_dir = tmp_path / "copied"
    shutil.copytree(finished[0], run_dir)
    return run_dir, finished[1]


def without_clock(result):
    return {name: value for name, value in result.items() if name != "training_seconds"}


def test_result_is_what_the_library_evaluates(finished, tolerance):
    """Oracle: `mj.evaluate` with a model, a loss, an inner loop and keys made here."""
    run_dir, result, _ = finished
    model = mj.models.Mlp(features=(4, 4, 1))
    start = model.init(jax.random.fold_in(jax.random.key(0), 0), jnp.zeros((1, 1)))
    measure = {
        "loss_fn": mj.losses.regression(model.apply),
        "inner": mj.maml(optax.sgd(0.01), 2),
        "sampler": mj.data.sinusoid(shot=5, query_shot=8),
        "key": jax.random.fold_in(jax.random.key(0), 3),
        "num_tasks": 4,
        "num_steps": 1,
    }
    _, progress = runs.load_run(run_dir)
    best = mj.evaluate(params=progress.best_params, **measure)
    assert result["test"]["means"]["loss"] == pytest.approx(best.means["loss"], rel=10 * tolerance)
    assert result["test"]["mean"] == result["test"]["means"]["loss"][-1]
    untrained = mj.evaluate(params=start, **measure)
    assert result["baselines"] == {"untrained": pytest.approx(untrained.mean, rel=10 * tolerance)}
    assert best.mean != untrained.mean
    assert (result["test"]["num_tasks"], result["test"]["num_query"]) == (4, 8)
    assert result["outer_steps"] == 9
    assert result["best_step"] == int(progress.best_step)
    assert result["best_step"] in (6, 9)
    logged = read_metrics(run_dir / "metrics.jsonl")
    assert result["training_seconds"] == sum(row.get("seconds", 0.0) for row in logged)
    assert json.loads((run_dir / "result.json").read_text()) == json.loads(json.dumps(result))


def test_folder_holds_the_configuration_the_log_and_small_pictures(finished):
    run_dir, _, _ = finished
    assert runs.read_config(run_dir) == CONFIG
    versions = json.loads((run_dir / "config.json").read_text())["versions"]
    assert versions["jax"] == jax.__version__
    assert versions["maml-jax"] == mj.__version__
    assert [row["step"] for row in read_metrics(run_dir / "metrics.jsonl")] == [3, 6, 6, 9, 9]
    assert checkpoints.steps(run_dir / "checkpoints") == [6, 9]
    for name in PICTURES:
        assert (run_dir / name).stat().st_size < 200_000
        with Image.open(run_dir / name) as image:
            assert image.format == "PNG"
            image.load()


def test_lines_are_plain_where_there_is_no_terminal(finished):
    """One complete line for each validation, and nothing that looks like a progress bar."""
    run_dir, _, printed = finished
    means = [
        row["validation"] for row in read_metrics(run_dir / "metrics.jsonl") if "validation" in row
    ]
    wanted = [
        f"step {step:6}: validation loss {mean['mean']:.4f} ± "
        f"{mean['half_widths']['loss'][-1]:.4f} after 1 inner step"
        for step, mean in zip((6, 9), means, strict=True)
    ]
    assert printed.splitlines() == wanted


def test_progress_bar_on_a_terminal():
    """It counts steps and shows the loss; the cursor stays, as a second Ctrl-C may kill."""
    where = Console(file=io.StringIO(), force_terminal=True, width=100)
    with runs.progress_report(where, first_step=5, num_steps=20) as report:
        assert said(where).rindex("\x1b[?25h") > said(where).rindex("\x1b[?25l")
        report(10, {"query_loss": 0.25, "accuracy": 0.5}, None)
        report(15, {"n_valid": 0.0}, None)
    printed = said(where)
    assert "meta-training" in printed
    assert "15/20 steps no task counted" in printed


@pytest.mark.parametrize("left", ["config.json", "checkpoints"])
def test_a_folder_with_a_run_is_refused(copied, left):
    """Also one of which only the configuration, or only the checkpoints, are left."""
    run_dir, _ = copied
    for path in run_dir.iterdir():
        if path.name != left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    message = f"{run_dir} holds a run already; go on with `maml-jax resume {run_dir}`"
    with pytest.raises(FileExistsError, match=message):
        runs.start_run(CONFIG, run_dir, console=console())
    assert [path.name for path in run_dir.iterdir()] == [left]


def test_resuming_a_finished_run_evaluates_it_again(copied, monkeypatch):
    run_dir, result = copied
    for name in ["result.json", *PICTURES]:
        (run_dir / name).unlink()
    monkeypatch.setattr(training, "run_outer_steps", None)  # No step is made.
    where = console()
    assert runs.resume_run(run_dir, console=where) == result
    assert said(where) == "All 9 steps are done: evaluating again.\n"
    assert json.loads((run_dir / "result.json").read_text())["summary"] == result["summary"]
    assert all((run_dir / name).exists() for name in PICTURES)


def test_stopped_before_the_first_checkpoint(copied, monkeypatch):
    """The log has lines already, the checkpoint is not there: from the start, once."""
    run_dir, result = copied
    monkeypatch.setattr(runs, "draw_all", lambda *arguments, **options: [])
    shutil.rmtree(run_dir / "checkpoints")
    where = console()
    again = runs.resume_run(run_dir, console=where)
    assert said(where).startswith("There is no checkpoint yet: starting at step 0.\n")
    assert without_clock(again) == without_clock(result)
    assert [row["step"] for row in read_metrics(run_dir / "metrics.jsonl")] == [3, 6, 6, 9, 9]


def test_resumed_in_the_middle(copied, monkeypatch):
    run_dir, result = copied
    monkeypatch.setattr(runs, "draw_all", lambda *arguments, **options: [])
    shutil.rmtree(run_dir / "checkpoints" / "00000009")
    where = console()
    again = runs.resume_run(run_dir, console=where)
    assert said(where).startswith("Going on after step 6 of 9.\n")
    assert without_clock(again) == without_clock(result)


def test_evaluation_by_another_protocol(finished, tolerance):
    """Oracle: no inner step gives the first entry of the result's means, on the same tasks."""
    run_dir, result, _ = finished
    before = (run_dir / "result.json").read_bytes()
    unadapted = runs.evaluate_run(run_dir, num_steps=0)
    assert unadapted.inner_steps == (0,)
    assert unadapted.mean == pytest.approx(result["test"]["means"]["loss"][0], rel=10 * tolerance)
    assert (run_dir / "result.json").read_bytes() == before


def test_plot_draws_anew_and_evaluates_only_if_it_must(copied, monkeypatch):
    run_dir, result = copied
    for name in PICTURES:
        (run_dir / name).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(runs, "_finish", None)
        assert [path.name for path in runs.plot_run(run_dir)] == PICTURES
    assert all((run_dir / name).stat().st_size > 1000 for name in PICTURES)
    stale = json.dumps({**result, "outer_steps": 3, "summary": "of another step"})
    for old in (None, stale):
        (run_dir / "result.json").unlink()
        if old is not None:
            (run_dir / "result.json").write_text(old)
        assert [path.name for path in runs.plot_run(run_dir)] == PICTURES
        again = json.loads((run_dir / "result.json").read_text())
        assert again == json.loads(json.dumps(result))


@pytest.mark.parametrize("content", ["", '{"test": ', "[]", "{}", '{"test": {}}'])
def test_a_damaged_result_is_named(copied, content):
    run_dir, _ = copied
    (run_dir / "result.json").write_text(content)
    with pytest.raises(ValueError, match=r"result.json is not as it was written; remove it"):
        runs.plot_run(run_dir)


def test_no_run_no_checkpoint_no_configuration(tmp_path):
    message = r"holds no run \(no config.json\); start one with `maml-jax train`"
    for use in (runs.read_config, runs.load_run, runs.evaluate_run, runs.plot_run):
        with pytest.raises(FileNotFoundError, match=message):
            use(tmp_path)
    with pytest.raises(FileNotFoundError, match=message):
        runs.resume_run(tmp_path, console=console())
    write_config(tmp_path, CONFIG)
    message = f"has no checkpoint yet; train it with `maml-jax resume {tmp_path}`"
    for use in (runs.load_run, runs.evaluate_run, runs.plot_run):
        with pytest.raises(FileNotFoundError, match=message):
            use(tmp_path)
    for content in ("", "{", "[]", "{}", '{"config": {"no_such_field": 1}}'):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ValueError, match=r"config.json is not as it was written"):
            runs.read_config(tmp_path)


def test_changed_configuration_does_not_take_the_checkpoint(copied):
    """All settings must be equal but where the data lie, which may differ by machine."""
    run_dir, _ = copied
    write_config(run_dir, dataclasses.replace(CONFIG, outer_learning_rate=0.5))
    message = "config outer_learning_rate: saved 0.001, wanted 0.5"
    with pytest.raises(checkpoints.CheckpointMismatchError, match=message):
        runs.load_run(run_dir)
    free = {"data_dir": "elsewhere", "checkpoint_every": 3, "test_tasks": 3, "source": "mine"}
    write_config(run_dir, dataclasses.replace(CONFIG, **free, reported="much"))
    assert runs.load_run(run_dir)[1].step == 9
    left_out = {"data_dir", "checkpoint_every", "test_tasks", "source", "reported"}
    assert set(dataclasses.asdict(CONFIG)) - set(checked_settings(CONFIG)) == left_out
    assert checked_settings(CONFIG)["x64"] is bool(jax.config.values["jax_enable_x64"])


def test_a_run_that_is_older_than_a_field_goes_on(copied, tolerance):
    """Its files lack the field, whose default is what it was made with; the others are checked."""
    run_dir, result = copied
    newer = ("differentiate", "gain")
    content = json.loads((run_dir / "config.json").read_text())
    for name in newer:
        del content["config"][name]
    (run_dir / "config.json").write_text(json.dumps(content))
    for path in (run_dir / "checkpoints").iterdir():
        manifest = json.loads((path / "manifest.json").read_bytes())
        for name in newer:
            del manifest["config"][name]
        text = json.dumps(manifest).encode()
        (path / "manifest.json").write_bytes(text)
        seal = f"{hashlib.sha256(text).hexdigest()}  manifest.json\n"
        (path / "manifest.sha256").write_text(seal)
    assert runs.evaluate_run(run_dir).mean == pytest.approx(result["test"]["mean"], rel=tolerance)
    where = console()
    assert runs.resume_run(run_dir, console=where)["outer_steps"] == 9
    assert said(where).startswith("All 9 steps are done")
    content["config"]["shot"] = 4
    (run_dir / "config.json").write_text(json.dumps(content))
    with pytest.raises(checkpoints.CheckpointMismatchError, match="shot: saved 5, wanted 4"):
        runs.load_run(run_dir)


@pytest.mark.parametrize("memory", [True, False])
def test_out_of_memory_says_what_to_lower(copied, monkeypatch, memory):
    """Other errors of JAX stay what they are; the checkpoints stay in both cases."""
    run_dir, _ = copied
    shutil.rmtree(run_dir / "checkpoints" / "00000009")
    text = "RESOURCE_EXHAUSTED: Out of memory allocating 1125899906842624 bytes.\nmore"

    def fails(*arguments, **options):
        raise jax.errors.JaxRuntimeError(text if memory else "INTERNAL: bad luck")

    monkeypatch.setattr(training, "run_outer_steps", fails)
    outcome = (
        pytest.raises(
            MemoryError,
            match=r"2 tasks x 2 inner steps x 10 examples. Start a run with a lower "
            r"--meta-batch-size.*--inner fomaml. JAX says: .*allocating 1125899906842624 bytes.$",
        )
        if memory
        else pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL: bad luck")
    )
    with outcome:
        runs.resume_run(run_dir, console=console())
    assert checkpoints.steps(run_dir / "checkpoints") == [6]
    assert runs.load_run(run_dir)[1].step == 6


def test_out_of_memory_in_an_evaluation_names_its_own_flags(copied, monkeypatch):
    def fails(*arguments, **options):
        raise jax.errors.JaxRuntimeError("INTERNAL: Out of memory allocating 8 bytes.")

    monkeypatch.setattr(assembly.Problem, "evaluate", fails)
    words = "an evaluation has 13 examples and 1 inner steps. Lower --test-query-shot, --test-inner"
    for use in (runs.evaluate_run, lambda run_dir: runs.resume_run(run_dir, console=console())):
        with pytest.raises(MemoryError, match=words):
            use(copied[0])


def test_a_claimed_folder_is_the_next_number_whoever_comes_first(tmp_path):
    """Oracle: twelve threads at once, no two of which may get one; a space is quoted."""
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        claimed = pool.map(lambda _: runs.claim_run_dir("mine", root=tmp_path).name, range(12))
    assert sorted(claimed) == sorted(["mine", *(f"mine-{number}" for number in range(2, 13))])
    assert resume_command("runs/a b") == "maml-jax resume 'runs/a b'"
    with contextlib.chdir(tmp_path):
        assert str(runs.claim_run_dir("mine")) == "runs/mine"


def test_a_full_disk_is_found_before_a_run_goes_on(copied, monkeypatch):
    """Before the data are read, and before the lock is taken."""
    run_dir, _ = copied

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runs, "assemble", None)
    monkeypatch.setattr(os, "fsync", full)
    message = f"Cannot write to {run_dir}/checkpoints: .* free: .*No space left on device"
    with pytest.raises(checkpoints.CheckpointWriteError, match=message):
        runs.resume_run(run_dir, console=console())
    assert not (run_dir / run_lock.FILE).exists()


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: append_metrics(folder / "metrics.jsonl", {"step": 1}),
        lambda folder: truncate_metrics(folder / "metrics.jsonl", 0),
        lambda folder: write_config(folder, CONFIG),
        lambda folder: run_lock.held(folder, print).__enter__(),
    ],
)
def test_a_full_disk_names_the_file(tmp_path, monkeypatch, write):
    (tmp_path / "metrics.jsonl").touch()

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/\w+"):
        write(tmp_path)
