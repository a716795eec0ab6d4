"""H6: which divisor carries a learning rate over, by what is held fixed."""

import itertools

import gaussian
import numpy as np
from criteria import criterion, matching
from records import array

# Risk over best risk as in predictions.md: (protocol, arm): rows ρ = 0, 0.2, 1; B = 4, 16, 64.
PREDICTED = {
    ("steps", "mean"): ((1.07, 1.62, 4.1), (1.0, 1.07, 1.1), (1.0, 1.0, 1.0)),
    ("steps", "sum"): ((2.4, 7.3, 31.0), (2.4, 8.3, 38.0), (2.7, 9.5, 43.0)),
    ("tasks", "mean"): ((19.0, 205.0, 674.0), (13.0, 60.0, 68.0), (6.0, 18.0, 19.0)),
    ("tasks", "sum"): ((1.0, 1.0, 2.4), (1.0, 1.1, 1.7), (1.1, 1.3, 2.0)),
}
RHOS, SIZES = (0.0, 0.2, 1.0), (4, 16, 64)


def by_cell(cells, name, protocol):
    """Gives {(B, rho): values} of one optimizer and protocol."""
    found = matching(cells, f"{name} {protocol}" + r" B=(\d+) rho=(.*)")
    return {(int(size), float(rho)): values for (size, rho), values in found.items()}


def ratio(values, arm):
    """Risk over best risk of an arm; infinite where it diverged."""
    return array(values["ratio"][arm])[0]


def transfer_f1(cells):
    """The criteria on F1."""
    steps, tasks = by_cell(cells, "sgd", "steps"), by_cell(cells, "sgd", "tasks")
    lines = [_multiples(steps, tasks), _table(steps, tasks), _caveat(steps), _penalty(steps, tasks)]
    lines += _adam(by_cell(cells, "adam", "steps"), by_cell(cells, "adam", "tasks"))
    return lines


def _multiples(steps, tasks):
    fixed_steps = [values["multiple"] for values in steps.values()]
    fixed_tasks = [values["multiple"] / size for (size, _), values in tasks.items()]
    holds = None
    if fixed_steps and fixed_tasks:
        holds = all(1 <= m <= 2 for m in fixed_steps) and all(0.3 <= m <= 1.1 for m in fixed_tasks)
    return criterion(
        "F1, SGD: lr*(B)/lr*(1) in [1, 2] at fixed steps, [0.3 B, B] at fixed tasks, for all ρ",
        {"steps": _range(fixed_steps), "tasks, over B": _range(fixed_tasks)},
        holds,
    )


def _range(values):
    return [min(values), max(values)] if values else None


def _table(steps, tasks):
    worst, where = 0.0, None
    for (protocol, arm), rows in PREDICTED.items():
        for rho, row in zip(RHOS, rows, strict=True):
            for size, expected in zip(SIZES, row, strict=True):
                values = {"steps": steps, "tasks": tasks}[protocol].get((size, rho))
                if values is None:
                    continue
                limit = 1.15 if expected < 2 else 1.5
                off = abs(np.log(ratio(values, arm) / expected)) / np.log(limit)
                if off > worst:
                    worst = off
                    where = [protocol, arm, size, rho, expected, ratio(values, arm)]
    return criterion(
        "F1, SGD: the table of risk over best risk within ×1.15 (below 2) or ×1.5",
        {"worst cell (protocol, arm, B, ρ, predicted, measured)": where},
        worst <= 1 if where else None,
    )


def _caveat(steps):
    values = steps.get((64, 0.0))
    found = None if values is None else values["ratio"]["mean"]
    return criterion(
        "F1, SGD: at fixed steps the mean leaves a factor of 3 to 5 at B = 64, ρ = 0",
        found,
        None if found is None else 3 <= found[0] <= 5,
    )


def _penalty(steps, tasks):
    def series(cells, size):
        rhos = sorted(rho for other, rho in cells if other == size)
        return [ratio(cells[size, rho], "sum") for rho in rhos]

    found = {f"steps B={size}": series(steps, size) for size in (4, 16)}
    found |= {f"tasks B={size}": series(tasks, size) for size in (4, 16)}
    rising = [all(b >= 0.99 * a for a, b in itertools.pairwise(row)) for row in found.values()]
    measured = all(len(row) > 1 for row in found.values())
    claim = "F1, SGD: the penalty of the sum rises with ρ, at B ≤ 16 under both protocols"
    return criterion(claim, found, all(rising) if measured else None)


def _adam(steps, tasks):
    inside_steps, inside_tasks = [], []
    for (size, rho), values in steps.items():
        low = gaussian.effective_tasks(rho, size) ** -0.5
        inside_steps.append(low / 1.6 <= values["multiple"] <= 1.6 and values["multiple"] <= 1.0)
    for (size, _), values in tasks.items():
        inside_tasks.append(size**0.5 / 1.6 <= values["multiple"] <= 1.6 * size**0.75)
    found_steps = _range([values["multiple"] for values in steps.values()])
    found_tasks = {f"B={s} rho={r}": v["multiple"] for (s, r), v in tasks.items()}
    return [
        criterion(
            "F1, Adam: at fixed steps lr*(B)/lr*(1) falls, between B_eff^-½ and 1",
            found_steps,
            all(inside_steps) if inside_steps else None,
        ),
        criterion(
            "F1, Adam: at fixed tasks lr*(B)/lr*(1) between √B and B^¾, within ×1.6",
            found_tasks,
            all(inside_tasks) if inside_tasks else None,
        ),
    ]


def transfer_f2(cells):
    """The criterion on F2, for SGD with momentum, and the same numbers for Adam."""
    lines = []
    for name in ("momentum", "adam"):
        steps, tasks = by_cell(cells, name, "steps"), by_cell(cells, name, "tasks")
        near = [ratio(v, "mean") <= ratio(v, "sum") for v in steps.values()]
        near += [ratio(v, "sum") <= ratio(v, "mean") for v in tasks.values()]
        bounded = [ratio(v, "mean") <= 1.5 for v in steps.values()]
        bounded += [ratio(v, "sum") <= 1.5 for v in tasks.values()]
        found = {
            f"{protocol} B={size} rho={rho}": [ratio(v, "mean"), ratio(v, "root"), ratio(v, "sum")]
            for protocol, group in (("steps", steps), ("tasks", tasks))
            for (size, rho), v in group.items()
        }
        holds = all(near) and all(bounded) if near else None
        what = "the sum" if name == "momentum" else "lr · B"
        claim = f"F2, {name}: the mean is nearer at fixed steps, {what} at fixed tasks, within 1.5"
        lines.append(criterion(claim, {"mean, √B, B over best": found}, holds))
    return lines
