"""Work and exchanges of devices that share a Conv4's outer step, and the paper model of TPUs.

Programs are compiled, not run, by the functions of `benchmarks/scaling.py`: as they are lowered
for an accelerator, all tasks side by side. The programs themselves, at their smallest:

    python -m pytest -m nightly tests/test_scaling.py
"""

import dataclasses
import functools
import importlib
import json
import math
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import maml_jax as mj
from maml_jax.benchmarking import Exchange, cost_of, exchanges

PROGRAMS = pathlib.Path(__file__).resolve().parents[1] / "benchmarks"
pytestmark = pytest.mark.slow

NUM_TASKS = 8
REPORTED = 3  # Numbers that a task reports: its losses before and after, and its accuracy.


def program(name):
    """Imports a program, which is no module of the package."""
    sys.path.insert(0, str(PROGRAMS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(PROGRAMS))


scaling = program("scaling")
paper = program("scaling_model")
tables = program("scaling_tables")
workloads = program("workloads")


@functools.cache
def conv4():
    """A small Conv4 on noise."""
    model = mj.models.Conv4(num_classes=2, features=8)
    sampler = functools.partial(workloads._noise, size=(16, 16, 1), way=2, shot=1, query_shot=2)
    loss_fn = mj.losses.classification(model.apply)
    return workloads.Workload(
        name="Conv4",
        loss_fn=loss_fn,
        naive_loss_fn=loss_fn,
        params=model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 1))),
        tasks=mj.meta_batch(sampler, jax.random.key(1), NUM_TASKS),
        sampler=sampler,
        num_steps=1,
        learning_rate=0.1,
    )


@functools.cache
def num_params():
    return sum(leaf.size for leaf in jax.tree.leaves(conv4().params))


def mesh(count):
    if len(jax.devices()) < count:
        pytest.skip(f"needs {count} devices, has {len(jax.devices())}")
    return scaling.mesh_of(count)


@functools.cache
def step(rule, count, **options):
    """A compiled outer step, first-order: what follows the inner loop is what matters here."""
    if rule not in ("mean", "sum", "weighted"):
        rule = getattr(mj.aggregation, rule)()
    options = {"aggregation": rule, "inner": conv4().inner(first_order=True), **options}
    return scaling.counted(conv4(), mesh(count), **options)


def found(rule, **options):
    """What two devices exchange in an outer step."""
    return exchanges(step(rule, 2, **options).as_text())


def test_each_device_does_its_part_of_the_work():
    """Oracle: the FLOPs of W1 on one device over the number of devices.

    Of a network of 2,000 parameters the counts are 3 to 7% apart, of W1 less than 0.01%.
    """
    w1 = scaling.for_tpu("W1", NUM_TASKS)
    alone, *others = (cost_of(scaling.counted(w1, mesh(count))) for count in (1, 2, 4))
    for count, cost in zip((2, 4), others, strict=True):
        assert cost.flops == pytest.approx(alone.flops / count, rel=0.02)


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("mean", {}),
        ("sum", {"masked": True}),
        ("weighted", {"weighted": True, "masked": True}),
        ("mean", {"masked": True, "on_nonfinite": "skip"}),
    ],
)
def test_a_linear_rule_adds_up_one_gradient(rule, options):
    """With the reports of the tasks, or these apart; a mask adds one task, to stand in."""
    of_gradient = [e for e in found(rule, **options) if e.elements >= num_params()]
    (exchange,) = of_gradient
    assert exchange.kind == "all-reduce"
    assert exchange.devices == 2
    assert exchange.elements <= num_params() + 8 * NUM_TASKS
    rest = sum(e.elements for e in found(rule, **options)) - exchange.elements
    one_task = sum(leaf[0].size for leaf in jax.tree.leaves(conv4().tasks))
    assert rest <= 8 * NUM_TASKS + (one_task if "masked" in options else 0)


def test_the_mean_exchanges_once():
    """Oracle: the size of the parameters and of the reports, by hand."""
    width = 8 if jax.config.jax_enable_x64 else 4
    size = num_params() + REPORTED * NUM_TASKS
    assert found("mean") == [Exchange("all-reduce", size, width * size, 2)]


@pytest.mark.parametrize("rule", ["upgrad", "median"])
def test_nowhere_are_the_gradients_of_all_tasks(rule):
    """A device gets its coordinates of every task, T P / D numbers, and a gradient of all."""
    by_kind = {}
    for exchange in found(rule):
        by_kind.setdefault(exchange.kind, []).append(exchange.elements)
    assert sum(by_kind["all-to-all"]) <= NUM_TASKS * num_params() / 2
    assert sum(by_kind["all-to-all"]) > 0.9 * NUM_TASKS * num_params() / 2
    assert sum(by_kind["all-gather"]) <= num_params() + 8 * NUM_TASKS + 100
    assert max(by_kind["all-reduce"]) < num_params()


WORK = paper.Work(
    name="W1",
    bound="float32",
    kind="v5e",
    flops=197e12 * 0.5 * 0.4 * 100e-6,  # Half of the columns, 40% of the rate: 100 µs.
    num_bytes=819e9 * 80e-6,
    num_params=819_000,
    num_leaves=10,
    reported=3,
    efficiency=0.4,
)


def test_slices_have_the_rates_that_google_publishes():
    """All-reduce and bisection bandwidth of a pod; a corner of 2x4 chips has two links."""
    pod = paper.SLICES["v5e-256"]
    assert pod.num_chips * pod.chip_rate == pytest.approx(51.2e12)
    assert pod.bisection_rate == pytest.approx(1.6e12)
    assert pod.hops == 16
    few = paper.SLICES["v6e-8"]
    assert (few.chip_rate, few.bisection_rate, few.hops) == (200e9, 200e9, 4)


def test_the_model_in_closed_form():
    """4 tasks of 100 µs; Adam moves 7 times 3.276 MB; 8 parts of the gradient, and 8 hops."""
    chips = paper.SLICES["v5e-8"]
    got = paper.step_seconds(WORK, 4, chips)
    exchange = 2 * 7 / 8 * 4 * (819_000 + 3 * 32) / 100e9 + 2 * 4 * 1e-6
    assert got["tasks"] == pytest.approx(400e-6)
    assert got["optimizer"] == pytest.approx(28e-6)
    assert got["exchange"] == pytest.approx(exchange)
    assert got["step"] == pytest.approx(428e-6 + exchange)
    rates = paper.efficiencies(WORK, 4, chips)
    assert rates["weak"] == pytest.approx(428e-6 / got["step"])
    assert rates["strong"] == pytest.approx((400e-6 + 28e-6 / 8) / got["step"])
    assert rates["share"] == pytest.approx(1 - rates["weak"])
    waiting = dataclasses.replace(WORK, num_bytes=819e9 * 300e-6)
    assert paper.task_seconds(waiting, chips) == pytest.approx(300e-6)


def test_rules_that_need_gradients_cross_the_middle():
    """Oracle by hand: each of 256 chips sends a gradient's worth, a quarter of all one way."""
    chips = paper.SLICES["v5e-256"]
    others, gradient = 255 / 256, 4 * 819_000
    crossing = others * gradient * 256 / 4 / 1.6e12 + 16e-6
    gathered = others * gradient / 200e9 + 16e-6
    got = paper.exchange_seconds("FULL", WORK, 256, chips)
    assert got == pytest.approx(crossing + gathered)


def test_tasks_for_a_share_of_the_step():
    for chips in paper.SLICES.values():
        tasks = paper.tasks_for_share(WORK, chips, share=0.05)
        assert paper.efficiencies(WORK, tasks, chips)["share"] == pytest.approx(0.05)
    reports = dataclasses.replace(WORK, reported=10**6)
    assert math.isinf(paper.tasks_for_share(reports, chips))


@pytest.mark.parametrize(
    ("rule", "level", "tolerance"),
    [("mean", "STATIC", 1e-6), ("upgrad", "GRAM", 0.1), ("median", "FULL", 0.1)],
)
def test_the_model_sends_what_the_program_sends(rule, level, tolerance):
    """Oracle: the compiled program; in the model, numbers per task beside larger ones are none."""
    width = 8 if jax.config.jax_enable_x64 else 4
    params = conv4().params
    work = dataclasses.replace(
        WORK, num_params=num_params(), num_leaves=len(jax.tree.leaves(params)), reported=REPORTED
    )
    want = sum(size for _, size in paper.sent_bytes(level, work, NUM_TASKS, 2))
    got = sum(exchange.sent_bytes for exchange in found(rule))
    assert got == pytest.approx(width / 4 * want, rel=tolerance)


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        ("all-reduce(%x), replica_groups={{0,1,2},{3,4,5}}, to_apply=%add", 3),
        ("all-reduce(%x), replica_groups=[2,4]<=[8], to_apply=%add", 4),
        ("all-reduce(%x), replica_groups=mesh['a'=2,'b'=4], ids=([2,4]) {'b'}, to_apply=%add", 4),
        ("all-reduce(%x), replica_groups={}, to_apply=%add", 8),
        ("all-reduce-start(%x), replica_groups=[8,1]<=[8]", 1),
        ("collective-permute(%x), source_target_pairs={{0,1},{2,3}}", 2),
    ],
)
def test_devices_of_an_exchange_are_read_in_each_way_of_writing(text, devices):
    program = f"HloModule m, num_partitions=8\n %y = bf16[3,4]{{1,0}} {text}"
    kind = text.split("(")[0].removesuffix("-start")
    assert exchanges(program) == [Exchange(kind, 12, 24, devices)]


def test_bytes_that_a_device_sends():
    """Of an array of 100 bytes on 4 devices, in a ring."""
    sent = {"all-reduce": 150, "all-gather": 75, "all-to-all": 75, "reduce-scatter": 300}
    for kind, want in sent.items():
        assert Exchange(kind, 25, 100, 4).sent_bytes == want
    assert Exchange("collective-permute", 25, 100, 2).sent_bytes == 100


@functools.cache
def committed():
    return json.loads((PROGRAMS / "results" / "scaling.json").read_text())


def test_the_committed_counts_fall_as_one_over_the_devices():
    """Oracle: 1/D, and the same work for the same tasks; one exchange of all gradients' sum."""
    by_case = {}
    for row in committed()["results"]:
        by_case.setdefault((row["workload"], row["scaling"]), []).append(row)
    assert {name for name, _ in by_case} == {"W1", "W2", "W3"}
    for (_, growth), (alone, *rest) in by_case.items():
        assert alone["devices"] == 1
        assert not alone["exchanges"]
        for row in rest:
            part = row["devices"] if growth == "strong" else 1
            assert row["flops"] == pytest.approx(alone["flops"] / part, rel=0.02)
            assert row["exchanges"]["all-reduce"]["count"] == 1
            assert list(row["exchanges"]) == ["all-reduce"]
            assert row["relative_error"] < 1e-12


def test_the_committed_model_follows_from_the_committed_work():
    """Oracle: the model again, of what it says that it was made of."""
    model = committed()["model"]
    again = tables.model([paper.Work(**work) for work in model["works"]])
    assert model["is"] == "a model, not a measurement"
    for name in ("steps", "enough", "strong", "rules"):
        for got, want in zip(model[name], again[name], strict=True):
            assert got == pytest.approx(want)


def test_every_table_and_picture_of_the_model_says_that_it_is_one(tmp_path):
    page = program("report").scaling(committed())
    assert page.count("a model, not a measurement") == 4
    made = program("scaling_picture").figure(committed())
    titles = [axes.get_title(loc="left") for axes in made.axes]
    assert [("model, not a measurement" in title) for title in titles] == [False, False, True, True]


@pytest.mark.nightly
def test_the_program_counts_models_and_writes(tmp_path):
    env = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    output = tmp_path / "scaling.json"
    flags = ["--workloads", "W3", "--devices", "2", "4", "--repeats", "1", "--output", str(output)]
    command = [sys.executable, str(PROGRAMS / "scaling.py"), *flags]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout
    assert "a model, not a measurement" in said
    content = json.loads(output.read_text())
    assert [row["devices"] for row in content["results"]] == [1, 2, 4] * 2
    assert {row["devices"] for row in content["rules"]} == {"2", "4", "2x2"}
