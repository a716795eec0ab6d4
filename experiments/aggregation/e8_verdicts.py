"""The criteria of predictions_e8.md, computed from the results of E8, none by hand.

    python experiments/aggregation/e8_verdicts.py [--folder FOLDER]

writes `e8_verdicts.json`: per question and bench "supported" (every criterion holds), "refuted"
(the first, main one does not) or "mixed".
"""

import argparse
import itertools
import json
import math
import pathlib

import e8_verdicts_clipping
import numpy as np
from criteria import criterion
from e8_reading import (
    BENCHES,
    cells_of,
    gain_of,
    log_difference,
    measured,
    ratio,
    size_of_largest,
)
from e8_training import SAMPLINGS
from intervals import equivalence
from records import plain

HERE = pathlib.Path(__file__).resolve().parent
RANGES = {"omniglot": (0, 0.10), "glyphs": (0, 0.20), "omniglot sets": (0.05, 0.5)}
LEAST_WORTH = {"omniglot": 6.0, "glyphs": 4.0, "omniglot sets": 2.0}
B = 16


def correlated(bench, cells, omniglot):
    """E8a: how correlated are the gradients of tasks of one alphabet?"""
    states = [key for key in cells["diagnosis correlated"] if key.isdigit()]
    rho = {s: measured(cells, "correlated", s, "correlation") for s in states}
    labels = {s: measured(cells, "independent", s, "group_correlation") for s in states}
    apart = {s: measured(cells, "independent", s, "correlation") for s in states}
    kappa = {s: measured(cells, "correlated", s, "coherence") for s in states}
    first, last = states[0], states[-1]
    expected = bench.removesuffix(" conv4")
    (low, high), least = RANGES[expected], LEAST_WORTH[expected]
    worth = {s: B / (1 + (B - 1) * rho[s].estimate) for s in states}
    overlap = {s: rho[s].low <= labels[s].high and labels[s].low <= rho[s].high for s in states}
    divisors = {s: 1 + (B - 1) * kappa[s].estimate for s in (first, last)}
    signs = kappa[first].estimate, kappa[last].estimate
    return [
        size_of_correlation(bench, rho, low, high, omniglot),
        criterion(f"B_eff at 16 at least {least}", worth, min(worth.values()) >= least),
        criterion(
            "two batches and labels agree in 3 of 4 states",
            {"labels": labels, "overlap": overlap},
            sum(overlap.values()) >= 0.75 * len(states),
        ),
        criterion("independent: |ρ| at most 0.03", apart, inside(apart, -0.03, 0.03)),
        criterion(
            "coherence above 0.2, then below 0.1; D above 4, then below 2.5",
            {"coherence": kappa, "divisor": divisors},
            signs[0] > 0.2 and signs[1] < 0.1 and divisors[first] > 4 and divisors[last] < 2.5,
        ),
        criterion(
            "coherence at least 3 ρ at initialisation",
            kappa[first].estimate / max(rho[first].estimate, 1e-9),
            kappa[first].estimate >= 3 * rho[first].estimate,
        ),
    ]


def size_of_correlation(bench, rho, low, high, omniglot):
    """The main criterion of E8a; glyphs were expected to be above Omniglot at the end."""
    claim, holds = f"ρ in [{low}, {high}] at every state", inside(rho, low, high)
    if bench != "glyphs" or "diagnosis correlated" not in omniglot:
        return criterion(claim, rho, holds)
    other = measured(omniglot, "correlated", "512", "correlation")
    above = rho["512"].estimate > other.estimate
    found = {**rho, "Omniglot at 512": other}
    return criterion(f"{claim}, at 512 above that of Omniglot", found, holds and above)


def inside(intervals, low, high):
    """Whether all estimates are in [low, high]."""
    return all(low <= found.estimate <= high for found in intervals.values())


def carried(bench, cells):
    """E8b: does "sum may help when tasks are strongly correlated" hold?"""
    sizes = [n for n in (4, 16, 32) if f"adam correlated B={n}" in cells]
    criteria = [rates_move(cells), *sums(cells, sizes), adam_ignores(cells, sizes)]
    return [*criteria, *gains(cells, sizes), cost_of_correlation(bench, cells)]


def rates_move(cells):
    """The main criterion: which way does correlation move the best learning rate?"""
    octaves = {}
    for optimizer, protocol in itertools.product(("momentum", "adam"), ("steps", "tasks")):
        best = [cells[f"{optimizer} {s} B={B}"]["best"]["mean"][protocol] for s in SAMPLINGS]
        octaves[f"{optimizer}, same {protocol}"] = math.log2(best[1] / best[0])
    average = float(np.mean(list(octaves.values())))
    claim = "best rate, correlated over independent, in octaves: at most 0 in the mean"
    return criterion(claim, {**octaves, "mean": average}, average <= 0)


def sums(cells, sizes):
    """SGD: the sum against the mean at the carried learning rate."""
    steps, tasks, apart = {}, {}, {}
    for n, sampling in itertools.product(sizes, SAMPLINGS):
        cell = cells[f"momentum {sampling} B={n}"]
        steps[f"{sampling}, {n}"] = ratio(cell, "sum", "mean", "steps")
        tasks[f"{sampling}, {n}"] = ratio(cell, "sum", "mean", "tasks")
    for protocol in ("steps", "tasks"):
        apart[protocol] = log_difference(cells, f"momentum {{}} B={B}", "sum", "mean", protocol)
    late = {k: v for k, v in steps.items() if not k.endswith(" 4")}
    early = {k: v for k, v in tasks.items() if not k.endswith(" 32")}
    return [
        criterion(
            "SGD, same steps, B above 4: sum/mean at least 1.1, interval above 1",
            steps,
            all(v.estimate >= 1.1 and v.low > 1 for v in late.values()),
        ),
        criterion(
            "SGD, same tasks, B = 4 and 16: sum/mean below 1, interval below 1",
            tasks,
            all(v.high < 1 for v in early.values()),
        ),
        criterion(
            "SGD, B = 16: log(sum/mean), correlated minus independent, within 0.05 or above 0",
            apart,
            all(v.estimate > -0.05 for v in apart.values()),
        ),
    ]


def adam_ignores(cells, sizes):
    """Adam: sum and mean at the same learning rate."""
    found, p_values = {}, []
    for n, sampling, protocol in itertools.product(sizes, SAMPLINGS, ("steps", "tasks")):
        cell = cells[f"adam {sampling} B={n}"]
        found[f"{sampling}, {n}, {protocol}"] = ratio(cell, "sum", "mean", protocol)
        losses = cell["losses"]
        p_values.append(equivalence(losses["sum"][protocol], losses["mean"][protocol]))
    found["largest p of TOST"] = max(p_values)
    return criterion("Adam: sum/mean equal within 2% (TOST)", found, max(p_values) < 0.05)


def gains(cells, sizes):
    """AdaScale, and the square root under Adam."""
    near, kept, speed, tuned, root = {}, {}, {}, {}, {}
    for optimizer, sampling, n in itertools.product(("momentum", "adam"), SAMPLINGS, sizes):
        cell, name = cells[f"{optimizer} {sampling} B={n}"], f"{optimizer}, {sampling}, {n}"
        near[name] = ratio(cell, "adascale", "best", "tasks")
        base = {"losses": {"base": {"progress": cells[f"{optimizer} base"]["losses"]}}}
        base["losses"]["adascale"] = cell["losses"]["adascale"]
        kept[name] = ratio(base, "adascale", "base", "progress")
        speed[name] = gain_of(cell)
        tuned[name] = ratio(cell, "best adascale", "best", "steps")
        if optimizer == "adam" and n >= B:
            root[name] = ratio(cell, "root", "mean", "tasks")
    small = [v.estimate for k, v in near.items() if not k.endswith(" 32")]
    at_16 = [v for k, v in speed.items() if k.endswith(f" {B}")]
    return [
        criterion(
            "AdaScale, same tasks, B = 4 and 16: within 5% of the best rate",
            near,
            max(small) <= 1.05,
        ),
        criterion(
            "AdaScale's own stop: within 10% of B = 1; speed-up 2 to 16 at B = 16",
            {"ratio": kept, "speed-up": speed},
            max(v.estimate for v in kept.values()) <= 1.10 and 2 <= min(at_16) <= max(at_16) <= B,
        ),
        criterion(
            "tuned AdaScale and tuned mean within 3% at the same steps",
            tuned,
            size_of_largest(tuned) <= math.log(1.03),
        ),
        criterion(
            "Adam, same tasks: root below mean",
            root,
            all(v.estimate < 1 for v in root.values()),
        ),
    ]


def cost_of_correlation(bench, cells):
    """Tuned loss of correlated over independent meta-batches."""
    found = {}
    for optimizer in ("momentum", "adam"):
        pair = [cells[f"{optimizer} {s} B={B}"]["losses"]["best"] for s in SAMPLINGS]
        both = {"losses": dict(zip(SAMPLINGS, pair, strict=True))}
        found[optimizer] = ratio(both, "correlated", "independent", "steps")
    most = math.inf if bench == "omniglot sets" else 1.1
    claim = f"tuned, same steps, B = 16: correlated over independent between 1 and {most}"
    return criterion(claim, found, all(1 < v.estimate < most for v in found.values()))


def verdict(criteria):
    """Gives the verdict of criteria, the first of which is the main one."""
    if all(item["holds"] for item in criteria):
        return "supported"
    return "mixed" if criteria[0]["holds"] else "refuted"


def all_verdicts(folder):
    """Computes {question, bench: {"verdict", "criteria"}} from a folder of results."""
    found = {}
    for bench in BENCHES:
        cells = cells_of(folder, bench)
        questions = {
            "E8a": (
                lambda *args: correlated(*args, cells_of(folder, "omniglot")),
                "diagnosis correlated" in cells,
            ),
            "E8b": (carried, f"adam correlated B={B}" in cells),
            "E8c": (e8_verdicts_clipping.clipping, "clipping correlated" in cells),
        }
        for name, (judge, ready) in questions.items():
            if ready:
                criteria = judge(bench, cells)
                found[f"{name} {bench}"] = {"verdict": verdict(criteria), "criteria": criteria}
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=pathlib.Path, default=HERE / "results")
    folder = parser.parse_args().folder
    found = plain(all_verdicts(folder))
    text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "e8_verdicts.json").write_text(text + "\n")
    for name, entry in found.items():
        print(f"{name}: {entry['verdict']}")
        for item in entry["criteria"]:
            print(f"  {'+' if item['holds'] else '-'} {item['claim']}: {item['found']}")


if __name__ == "__main__":
    main()
