"""E8, the study on images: its arms are what they say, its numbers those of the library."""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import maml_jax as mj

pytestmark = pytest.mark.slow

STUDY = pathlib.Path(__file__).resolve().parents[1] / "experiments" / "aggregation"
SAMPLINGS = ("independent", "correlated")
SYSTEMS = ("Greek", "Cyrillic", "Latin", "Georgian", "Armenian")


@pytest.fixture(scope="module", autouse=True)
def study_modules():
    """Finds the study's modules, for this file only."""
    sys.path.insert(0, str(STUDY))
    yield
    sys.path.remove(str(STUDY))


@pytest.fixture(scope="module")
def splits():
    """Characters of five writing systems, drawn on the spot, 14 x 14 pixels."""
    module = sys.modules["maml_jax.data.glyphs"]
    return module._as_splits(module.draw_glyphs(14, 6, 0, systems=SYSTEMS))


@pytest.fixture(scope="module")
def bench_and_plan(splits):
    import e8_images

    return e8_images.quick(splits)


def trained(bench, name, *, optimizer="adam", rate=0.01, steps=6, **options):
    import e8_training as training

    arm = training.arm_of(bench, optimizer, name)
    options = {"num_tasks": 4, "sampling": "correlated", "marks": range(steps + 1), **options}
    lanes = {"seeds": [0, 0, 1], "rates": [rate, rate, 2 * rate]}
    return training.train(bench, arm, steps=steps, **{**lanes, **options})


def assert_trees_close(first, second, tolerance):
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        scale = max(1e-3, float(jnp.abs(b).max()))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale)


def read(path):
    def refuse(token):
        raise AssertionError(f"{path} holds {token}, which is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_study_runs_and_takes_up_finished_cells(bench_and_plan, tmp_path, monkeypatch):
    """The quick form leaves valid JSON, and a second run computes nothing."""
    import e8_images
    import e8_training as training

    bench, plan = bench_and_plan
    e8_images.study(bench, plan, tmp_path)
    first = read(tmp_path / "e8_glyphs.json")
    assert set(first) == {
        "adam base",
        *(f"{name} {sampling}" for name in ("diagnosis", "clipping") for sampling in SAMPLINGS),
        *(f"adam {sampling} B=4" for sampling in SAMPLINGS),
    }
    for name in ("carry", "clip", "diagnose", "tune_base"):
        monkeypatch.setattr(e8_images, name, lambda *args: pytest.fail("computed again"))
    e8_images.study(bench, plan, tmp_path)
    assert read(tmp_path / "e8_glyphs.json") == first
    losses = first["adam correlated B=4"]["values"]["losses"]
    for protocol in ("steps", "tasks"):
        np.testing.assert_allclose(losses["sum"][protocol], losses["mean"][protocol], rtol=0.02)
    for protocol, step in (("steps", bench.steps), ("tasks", bench.steps // 4)):
        chosen = first["adam correlated B=4"]["values"]["best"]["mean"][protocol]
        rates = 3 * [chosen * first["adam base"]["values"]["rate"]]
        again = trained(bench, "mean", steps=step, seeds=[0, 1, 2], rates=rates)
        expected, _ = training.scores(bench, again.states[step].params, "meta_test")
        np.testing.assert_allclose(losses["best"][protocol], expected, rtol=1e-4)


def test_sum_is_the_mean_at_a_longer_step(bench_and_plan, tolerance):
    """SGD with momentum, sum at lr against mean at B lr: the same parameters (identity)."""
    bench, _ = bench_and_plan
    total = trained(bench, "sum", optimizer="momentum", rate=0.01)
    mean = trained(bench, "mean", optimizer="momentum", rate=0.04)
    assert_trees_close(total.states[6].params, mean.states[6].params, 100 * tolerance)
    np.testing.assert_allclose(
        total.trace["grad_norm"][0], 4 * mean.trace["grad_norm"][0], rtol=1e-5
    )


def test_a_clip_that_always_binds_undoes_the_divisor(bench_and_plan, tolerance):
    """Adam behind a threshold below every norm: sum and mean give the same parameters."""
    bench, _ = bench_and_plan
    runs = [trained(bench, name, max_norm=1e-4) for name in ("mean", "sum")]
    assert all((ran.trace["grad_norm"] > 1e-4).all() for ran in runs)
    assert_trees_close(runs[0].states[6].params, runs[1].states[6].params, 1e4 * tolerance)
    free = trained(bench, "mean")
    moved = free.states[6].params["params"]["head"]["kernel"]
    clipped = runs[0].states[6].params["params"]["head"]["kernel"]
    assert float(jnp.abs(moved - clipped).max()) > 1e-4  # the threshold did act


def test_lanes_are_seeds_and_learning_rates(bench_and_plan):
    """Lanes of one seed and rate agree; another seed starts and draws otherwise."""
    ran = trained(bench_and_plan[0], "mean")
    kernel = np.asarray(ran.states[6].params["params"]["head"]["kernel"])
    np.testing.assert_array_equal(kernel[0], kernel[1])
    assert np.abs(kernel[0] - kernel[2]).max() > 1e-2


def test_adascale_stops_where_the_gains_have_made_up_the_horizon(bench_and_plan):
    """The oracle: sums of r = factor² (power 1/2, Adam), step by step, on the host."""
    bench, _ = bench_and_plan
    ran = trained(bench, "adascale", steps=20)
    progress = np.cumsum(ran.trace["factor"] ** 2, axis=0)
    for lane in range(3):
        last = 1 + int(np.argmax(progress[:, lane] >= bench.steps))  # that step is made
        assert 4 <= ran.trace["running"][:, lane].sum() == last < 20  # gains are 1 to 4
        there = jax.tree.map(lambda a, i=lane: a[i], ran.states[last].params)
        assert_trees_close(jax.tree.map(lambda a, i=lane: a[i], ran.stopped), there, 1e-12)


def test_samplings_differ_in_what_tasks_share_only(bench_and_plan):
    """One alphabet for all or one each; a single task is the same in both."""
    import e8_training as training

    bench, _ = bench_and_plan
    drawn = {
        sampling: mj.meta_batch(training.sampler_of(bench, sampling, 16), 3, 16)
        for sampling in SAMPLINGS
    }
    assert len(set(np.asarray(drawn["correlated"].task_id).tolist())) == 1
    assert len(set(np.asarray(drawn["independent"].task_id).tolist())) > 1
    first = [jax.tree.map(lambda a: a[0], drawn[sampling]) for sampling in SAMPLINGS]
    jax.tree.map(np.testing.assert_array_equal, *first)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_estimates_are_those_of_diagnose(bench_and_plan, sampling):
    """Same key, same tasks, same figures as the library's own report."""
    import e8_gradients as gradients
    import e8_training as training

    bench, _ = bench_and_plan
    arm = training.arm_of(bench, "adam", "mean")
    state = arm.outer.init(bench.init(jax.random.key(5)))
    ours = gradients.summary(gradients.looks(bench, arm.outer, state, sampling, 11, 4))
    sampler = training.sampler_of(bench, sampling, gradients.DIAGNOSED)
    theirs = mj.diagnose(arm.outer, state, sampler, 11, meta_batch_size=32, num_batches=4)
    assert {"correlation", "coherence", "gain"} <= set(ours["estimates"])
    for name, pair in ours["estimates"].items():
        np.testing.assert_allclose(pair, theirs.estimates[name], rtol=1e-4, atol=1e-5)


def test_a_diverged_run_counts_as_guessing(bench_and_plan):
    """Parameters that are not finite score ln 5; sound ones less or more, but never above."""
    import e8_training as training

    bench, _ = bench_and_plan
    params = trained(bench, "mean").states[6].params
    broken = jax.tree.map(lambda a: a.at[1].set(jnp.nan), params)
    losses, _ = training.scores(bench, broken, "meta_test")
    assert losses[1] == np.log(5)
    assert np.isfinite(losses).all()
    assert losses[0] < np.log(5)


def test_published_verdicts_and_pictures_are_those_of_the_results(tmp_path):
    """`e8_verdicts.json` is what the results beside it say; every picture can be drawn again."""
    import e8_plots
    import e8_verdicts
    from records import plain

    published = read(STUDY / "results" / "e8_verdicts.json")
    found = plain(e8_verdicts.all_verdicts(STUDY / "results"))
    assert {name.split()[0] for name in found} == {"E8a", "E8b", "E8c"}
    assert_alike(found, published)
    e8_plots.draw_all(STUDY / "results", tmp_path)
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert drawn == {path.name for path in STUDY.glob("e8_*.png")} != set()


def assert_alike(first, second):
    """Equal words and truths; numbers, some of which are resampled, within 1%."""
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for name in first:
            assert_alike(first[name], second[name])
    elif isinstance(first, list):
        for a, b in zip(first, second, strict=True):
            assert_alike(a, b)
    elif isinstance(first, float):
        assert first == pytest.approx(second, rel=0.01, abs=0.01)
    else:
        assert first == second


def test_omniglot_alphabets_are_the_groups(data_dir):
    """On the real data: 33 alphabets to learn from, and tasks of one of them."""
    import e8_images
    import e8_training as training

    bench, _ = e8_images.quick(mj.data.omniglot(data_dir=data_dir, image_size=14))
    sampler = training.sampler_of(bench, "correlated", 4)
    tasks = mj.meta_batch(sampler, 0, 4)
    assert tasks.support.inputs.shape == (4, 5, 14, 14, 1)
    assert len(set(np.asarray(tasks.task_id).tolist())) == 1
    table, sizes = sampler.sampler.args[:2]
    assert (len(table), int(sizes.sum())) == (33, 1028)
    in_sets = e8_images.in_sets(bench.splits).meta_train
    assert in_sets.num_classes == 970
    assert {in_sets.groups.count(name) for name in set(in_sets.groups)} == {5}
    assert len({name.rpartition("_")[0] for name in in_sets.class_names[:5]}) == 1
