"""The study of the reduction: its statistics, its families against theory, and its programs."""

import importlib
import json
import math
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from maml_jax import aggregation

pytestmark = pytest.mark.slow

STUDY = pathlib.Path(__file__).resolve().parents[1] / "experiments" / "aggregation"


@pytest.fixture(autouse=True)
def study_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(STUDY))


def load(name):
    return importlib.import_module(name)


# Statistics.


def test_interval_covers_the_mean_of_skewed_values():
    """Oracle: the definition. Of 200 intervals of 95%, about 190 hold the mean of Exp(1); a plain
    t interval of 12 such values covers 0.90. Binomial bounds at four standard errors."""
    intervals = load("intervals")
    draws = np.random.default_rng(0).exponential(size=(200, 12))
    found = [intervals.mean_interval(row, seed=i) for i, row in enumerate(draws)]
    coverage = np.mean([low <= 1.0 <= high for _, low, high in found])
    assert 0.89 <= coverage <= 1.0
    assert all(low < estimate < high for estimate, low, high in found)


def test_interval_of_normal_values_is_the_t_interval():
    """Oracle: Student's interval, to which the bootstrap-t tends for many normal values."""
    values = np.random.default_rng(1).normal(3.0, 2.0, size=400)
    estimate, low, high = load("intervals").mean_interval(values)
    half = stats.t.ppf(0.975, 399) * values.std(ddof=1) / 20
    assert estimate == pytest.approx(values.mean())
    assert (low, high) == pytest.approx((estimate - half, estimate + half), abs=0.1 * half)


def test_ratio_interval_pairs_its_seeds():
    """Oracle: of b = 2a exactly, the ratio is 1/2 and known without error."""
    a = np.random.default_rng(2).lognormal(size=30)
    intervals = load("intervals")
    assert intervals.ratio_interval(a, 2 * a) == pytest.approx((0.5, 0.5, 0.5))
    _, low, high = intervals.ratio_interval(a, 2 * np.roll(a, 1))
    assert high > 1.2 * low
    assert math.isinf(intervals.ratio_interval(np.append(a[1:], np.inf), a).estimate)


def test_equivalence_is_two_one_sided_tests():
    """Oracle: the larger of scipy's two one-sided paired t tests."""
    intervals = load("intervals")
    generator = np.random.default_rng(3)
    b = generator.normal(10, 1, size=20)
    a = b + generator.normal(0.05, 0.1, size=20)
    relative = (a - b) / b.mean()
    above = stats.ttest_1samp(relative, -0.02, alternative="greater").pvalue
    below = stats.ttest_1samp(relative, 0.02, alternative="less").pvalue
    assert intervals.equivalence(a, b) == pytest.approx(max(above, below))
    assert intervals.equivalence(a, b) < 0.05
    assert intervals.equivalence(1.05 * b, b) > 0.99
    assert intervals.equivalence(b, b) == 0.0
    assert intervals.equivalence(1.05 * b, np.append(b[1:], np.nan)) == 1.0


def test_holm_by_hand():
    """Oracle: Holm's procedure on three p-values, worked by hand."""
    adjusted = load("intervals").holm({"a": 0.04, "b": 0.01, "c": 0.03})
    assert adjusted == pytest.approx({"a": 0.06, "b": 0.03, "c": 0.06})


def test_learning_rate_is_chosen_by_the_mean_and_flagged_at_the_edge():
    intervals = load("intervals")
    risks = np.array([[3.0, 3.0], [1.0, 2.0], [0.5, np.nan]])
    assert intervals.best_learning_rate(risks) == (1, False)
    assert intervals.best_learning_rate(risks[:2]) == (1, True)
    with pytest.raises(ValueError, match="every learning rate diverged"):
        intervals.best_learning_rate(np.full((2, 2), np.nan))


def test_vertex_of_a_parabola():
    """Oracle: exp((log x - log 0.3)²) has its minimum at 0.3, off the grid."""
    rates = 10 ** np.arange(-2.0, 1.0, 0.25)
    risks = np.exp(np.log(rates / 0.3) ** 2)
    assert load("intervals").vertex(rates, risks) == pytest.approx(0.3)
    assert load("intervals").vertex(rates[:4], risks[:4]) == pytest.approx(rates[3])


# F1 against theory.


def test_variance_of_the_mean_follows_the_correlation():
    """Oracle: Var of the meta-batch mean is ρ + (1-ρ)/B in each coordinate, 1/B_eff."""
    gaussian = load("gaussian")
    for seed, rho in enumerate((0.0, 0.3, 1.0)):
        keys = jax.random.split(jax.random.key(seed), 4000)
        draw = jax.vmap(lambda key, rho=rho: gaussian.draw(key, gaussian.setting(rho), 8))
        optima = np.asarray(draw(keys)["optima"])
        assert optima.var(axis=(0, 1)).mean() == pytest.approx(1.0, rel=0.03)
        variance = optima.mean(1).var(axis=0).mean()
        assert variance == pytest.approx(rho + (1 - rho) / 8, rel=0.03)
        assert variance * gaussian.effective_tasks(rho, 8) == pytest.approx(1.0, rel=0.03)


def test_simulated_risk_is_that_of_the_recursion():
    """Oracle: the recursion of second moments, for the mean and for the sum at lr/B."""
    gaussian, simulate, moments, arms = map(load, ("gaussian", "simulate", "moments", "arms"))
    for rule, factor in ((aggregation.mean(), 1.0), (aggregation.sum(), 0.25)):
        outcome = simulate.simulate(
            gaussian.FAMILY,
            arms.linear_arm("mean", rule, arms.sgd()),
            setting=gaussian.setting(rho=0.2),
            num_tasks=4,
            num_steps=100,
            learning_rates=factor * np.array([0.05, 0.2]),
            seeds=range(400),
        )
        expected = moments.risk_of_sgd([0.05, 0.2], 100, gaussian.variance_of_mean(0.2, 4))
        assert outcome.tail[..., 0].mean(0) == pytest.approx(expected, rel=0.08)


def test_adascale_keeps_the_quality_of_one_task_in_fewer_steps():
    """Oracle: the recursion with the true gain; at ρ = 1 the gain is 1 and it is plain SGD.

    An estimated gain is a little lower than the true one: its signal is cut off at 0."""
    gaussian, simulate, moments, arms = map(load, ("gaussian", "simulate", "moments", "arms"))
    arm = arms.adascale("adascale", arms.sgd(), decay=0.9)
    for rho in (0.0, 1.0):
        outcome = simulate.simulate(
            gaussian.FAMILY,
            arm,
            setting=gaussian.setting(rho=rho),
            num_tasks=4,
            num_steps=256,
            learning_rates=[0.15],
            seeds=range(200),
        )
        variance = gaussian.variance_of_mean(rho, 4)
        risk, steps = moments.risk_of_adascale(0.15, 256, variance, num_tasks=4)
        assert outcome.tail[..., 0].mean() == pytest.approx(risk, rel=0.2)
        assert 0.99 * steps <= outcome.steps.mean() <= 1.35 * steps
    assert outcome.steps.mean() == pytest.approx(256, abs=1)


def test_arms_see_the_same_tasks_and_a_run_that_diverged_is_no_success():
    gaussian, simulate, arms = map(load, ("gaussian", "simulate", "arms"))
    outcomes = [
        simulate.simulate(
            gaussian.FAMILY,
            arms.linear_arm(name, aggregation.mean(), optimizer),
            setting=gaussian.setting(),
            num_tasks=2,
            num_steps=400,
            learning_rates=[0.1, 9.0],
            seeds=[5],
            schedule=simulate.constant,
            trace=True,
        )
        for name, optimizer in (("sgd", optax.identity()), ("momentum 0", optax.trace(0.0)))
    ]
    assert outcomes[0].tail[0, 0] == outcomes[1].tail[0, 0]
    assert np.isfinite(outcomes[0].trace[:, 0, 0]).all()
    assert not np.isfinite(outcomes[0].tail[0, 1, 0])


def test_reliability_family_has_the_variances_it_states():
    """Oracle: Σ wᵢ² vᵢ / (Σ wᵢ)², and that the estimated noise is unbiased."""
    groups, weights = load("groups"), load("e3_weights")
    setting = {"between": 0.25, "delta": 0.0, "label_noise": 0.0}
    keys = jax.random.split(jax.random.key(1), 4000)
    batch = jax.vmap(lambda key: groups.draw_reliability(key, setting, 20))(keys)
    for size in (np.ones(20), groups.SIZES):
        mean = np.einsum("kbd,b->kd", batch["optima"], size / size.sum())
        expected = weights.predicted_variance(size, 0.25)
        assert mean.var(0).mean() == pytest.approx(expected, rel=0.04)
    noise = np.asarray(batch["noise"]).mean(0)
    assert noise == pytest.approx(groups.SUM_SQUARES / groups.SIZES, rel=0.1)
    assert weights.predicted_variance(groups.SIZES, 0.1575) == pytest.approx(
        weights.predicted_variance(np.ones(20), 0.1575), rel=1e-3
    )


def test_self_normalised_offset_by_simulation():
    """Oracle: the mean share of the minority over many meta-batches."""
    minority = np.random.default_rng(0).binomial(4, 0.1, size=200_000)
    heavy, light = 5.0 * minority, 0.5 / 0.9 * (4 - minority)
    expected = 1 - 2 * (heavy / (heavy + light)).mean()
    assert load("e5_prior_shift").self_normalised_offset(4) == pytest.approx(expected, abs=0.005)


def test_controls_part_direction_and_length():
    """Oracle: the norms and directions of the rule's and the mean's own results."""
    controls = load("controls")
    grads = jax.random.normal(jax.random.key(3), (6, 4))
    rule = aggregation.cagrad()
    surgery, mean = aggregation.aggregate(rule, grads), grads.mean(0)
    longer = aggregation.aggregate(controls.with_length_of(rule), grads)
    turned = aggregation.aggregate(controls.with_direction_of(rule), grads)
    norm = jnp.linalg.norm
    assert np.asarray(longer) == pytest.approx(
        np.asarray(mean * norm(surgery) / norm(mean)), rel=1e-4
    )
    assert np.asarray(turned) == pytest.approx(
        np.asarray(surgery * norm(mean) / norm(surgery)), rel=1e-4
    )
    assert abs(float(norm(surgery) / norm(mean)) - 1) > 1e-3


def test_worst_case_that_is_told_of_frequencies_weighs_groups_alike():
    """Oracle: with p uniform, coefficients are wᵢ/n, of equal total for both groups."""
    shift = load("e5_prior_shift")
    rule = shift.told(aggregation.worst_case(0.01, 2))
    ids = jnp.array([0] * 9 + [1])
    got, state = aggregation.aggregate(
        rule,
        jnp.eye(10),
        losses=jnp.ones(10),
        weights=jnp.where(ids == 1, 5.0, 5 / 9),
        task_ids=ids,
        state=rule.init(),
    )
    assert np.asarray(got)[:9].sum() == pytest.approx(0.5)
    assert np.asarray(got)[9] == pytest.approx(0.5)
    assert np.asarray(state) == pytest.approx([0.5, 0.5])  # equal losses move no weight


# F2.


@pytest.mark.parametrize("rho", [0.0, 0.9])
def test_correlation_leaves_the_distribution_of_one_task_alone(rho):
    """Oracle: Kolmogorov and Smirnov's test of the first task of each meta-batch; amplitude and
    phase uniform for every ρ, while two tasks of one meta-batch go together."""
    sinusoids = load("sinusoids")
    keys = jax.random.split(jax.random.key(2), 2000)
    draw = jax.vmap(lambda key: sinusoids.curves(key, sinusoids.setting(rho), 2))
    amplitude, phase = map(np.asarray, draw(keys))
    assert stats.kstest(amplitude[:, 0], "uniform", (0.1, 4.9)).pvalue > 0.01
    assert stats.kstest(phase[:, 0], "uniform", (0, np.pi)).pvalue > 0.01
    spearman = stats.spearmanr(amplitude[:, 0], amplitude[:, 1]).statistic
    # Spearman's correlation of a Gaussian copula.
    assert spearman == pytest.approx(6 / np.pi * np.arcsin(rho / 2), abs=0.07)


def test_sinusoid_gradients_are_those_of_the_outer_step():
    """Oracle: the library's outer step, whose SGD step of size 1 is the mean gradient."""
    import maml_jax as mj

    sinusoids = load("sinusoids")
    params = sinusoids.init(jax.random.key(0))
    tasks = sinusoids.draw(jax.random.key(1), sinusoids.setting(), 3)
    outer = mj.make_outer_step(sinusoids.LOSS, sinusoids.INNER, optax.sgd(1.0))
    after, _ = outer.update(outer.init(jax.tree.map(jnp.array, params)), tasks)
    _, grads = sinusoids.gradients(params, None, tasks)
    for got, before, now in zip(*map(jax.tree.leaves, (grads, params, after.params)), strict=True):
        assert np.asarray(got).mean(0) == pytest.approx(np.asarray(before - now), abs=1e-5)


# Verdicts and programs.


def test_a_verdict_is_refuted_by_its_main_criterion_only():
    verdicts, criterion = load("verdicts"), load("criteria").criterion
    held, failed, unknown = (criterion("", 0, holds) for holds in (True, False, None))
    assert verdicts.verdict([held, unknown]) == "supported"
    assert verdicts.verdict([held, failed]) == "mixed"
    assert verdicts.verdict([unknown, failed, held]) == "refuted"
    assert verdicts.verdict([unknown]) == "not run"


def test_readme_states_the_verdicts_of_the_results():
    """Oracle: verdicts.json, which is computed from the results of the runs."""
    found = json.loads((STUDY / "results" / "verdicts.json").read_text())
    table = dict(
        re.findall(r"^\| (H\d+) [^|]*\| \**(\w+)", (STUDY / "README.md").read_text(), re.M)
    )
    assert table == {name: entry["verdict"] for name, entry in found.items() if name[0] == "H"}


def test_verdicts_are_those_of_the_results():
    verdicts, plain = load("verdicts"), load("records").plain
    stored = json.loads((STUDY / "results" / "verdicts.json").read_text())
    computed = plain(verdicts.all_verdicts(STUDY / "results"))
    assert {name: entry["verdict"] for name, entry in computed.items()} == {
        name: entry["verdict"] for name, entry in stored.items()
    }


def test_quick_runs_resume(tmp_path, capsys):
    """Finished cells are skipped; the file stays as it is, valid JSON without NaN."""
    run = load("run")
    run.main(["--quick", "--folder", str(tmp_path), "E3", "E6"])
    assert "e3  mean" in capsys.readouterr().out
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert set(before) == {"e3.json", "e6.json"}
    for text in before.values():
        json.loads(text, parse_constant=pytest.fail)
    run.main(["--quick", "--folder", str(tmp_path), "E3", "E6"])
    assert "e3  mean" not in capsys.readouterr().out
    assert before == {path.name: path.read_text() for path in tmp_path.iterdir()}


def test_cells_are_computed_anew_for_other_settings(tmp_path):
    records, calls = load("records"), []
    path = tmp_path / "results.json"

    def compute():
        calls.append(1)
        return {"risk": math.inf, "curve": np.array([1.0, np.nan])}

    assert records.cell(path, "a", {"steps": 1}, compute) == {"risk": None, "curve": [1.0, None]}
    records.cell(path, "a", {"steps": 1}, compute)
    assert len(calls) == 1
    records.cell(path, "a", {"steps": 2}, compute)
    assert len(calls) == 2
    assert records.array([1.0, None]).tolist() == [1.0, math.inf]


def test_unknown_experiment_is_refused():
    with pytest.raises(SystemExit):
        load("run").main(["E99"])


def test_study_needs_no_module_of_the_standard_library_by_name():
    assert not {path.stem for path in STUDY.glob("*.py")} & sys.stdlib_module_names
