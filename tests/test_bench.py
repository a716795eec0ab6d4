"""`maml-jax bench`: what is measured, and the advice that follows."""

import io

import jax
import pytest
from rich.console import Console

from maml_jax import bench, cli, reporting
from maml_jax.devices import task_mesh
from maml_jax.recipes import PRESETS

SINUSOID = "sinusoid-10shot-finn2017"


def said(*measured):
    out = io.StringIO()
    reporting.report_bench(Console(file=out, width=60), "mine", measured)
    return out.getvalue().splitlines()


def measured(axis, seconds, *, is_default=False):
    return bench.Measured(
        task_axis=axis,
        num_devices=1,
        num_tasks=10,
        seconds=seconds,
        compile_seconds=1.0,
        temporary_bytes=2**20,
        is_default=is_default,
    )


@pytest.mark.slow
def test_every_way_to_run_tasks_is_measured():
    """The one that `train` takes is first, and marked."""
    ways = list(bench.measure(PRESETS[SINUSOID], budget=1e9, repeats=1))
    assert [way.is_default for way in ways] == [True] + [False] * (len(ways) - 1)
    assert {way.task_axis for way in ways} == {"vmap", "scan", 4}
    assert {way.num_devices for way in ways} >= {1, task_mesh(25).size}
    assert all(way.seconds > 0 and way.rate == way.num_tasks / way.seconds for way in ways)


@pytest.mark.slow
def test_nothing_is_begun_after_the_budget(capsys):
    cli.main(["bench", SINUSOID, "--budget", "0", "--meta-batch-size", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("task_axis='vmap' on 1 device")
    assert "a step of 2 tasks" in lines[0]
    assert lines[-1] == f"`maml-jax train {SINUSOID}` runs it this way."


@pytest.mark.parametrize(
    ("other", "advice"),
    [
        (2.0, "`maml-jax train mine` runs it this way."),
        (0.95, "`maml-jax train mine` takes task_axis='scan' on 1 device, as fast within 10%."),
        (
            0.5,
            "`maml-jax train mine` takes task_axis='scan' on 1 device, which is 2.0 times slower "
            "here; in a script, give make_outer_step task_axis=4.",
        ),
    ],
)
def test_advice(other, advice):
    """No line is broken: it may be pasted."""
    assert said(measured("scan", 1.0, is_default=True), measured(4, other))[-1] == advice


def test_images_have_the_shapes_of_the_configuration():
    """Oracle: the number of channels and pixels of each data set."""
    for name, shape in (("omniglot", (28, 28, 1)), ("cifar_fs", (32, 32, 3))):
        config = next(c for c in PRESETS.values() if c.dataset == name)
        task = jax.eval_shape(lambda key, c=config: bench._noise(c, key), jax.random.key(0))
        support = (config.meta_batch_size, config.way * config.shot)
        assert task.support.inputs.shape == (*support, *shape)
        assert task.query.targets.shape == (support[0], config.way * config.query_shot)
