"""Do our rules give what TorchJD's released package gives? On 200 random matrices in float64.

    python benchmarks/agreement.py [--environments FOLDER] [--output FILE]

A difference is ‖ours - theirs‖ over the longer of the two, or over 1% of the root mean square
of the gradients' lengths if both are shorter, as where 0 is the right answer. Both sides get the
same matrices: 2 to 16 tasks, 5 to 512 parameters, with and without a common direction. For the
rules that solve a quadratic program a third opinion is SciPy's NNLS, which works on the gradients
and not on their products: how far either side is from it is in the last two columns.

What is converted from their conventions to ours, on which n identical gradients g give g:

    pcgrad, gradvac, config   theirs sum over the n tasks: divided by n
    cagrad                    theirs gives (1 + c) g: divided by 1 + c
    nash_mtl                  theirs has the length √n whatever the gradients', and is then clipped
                              to `max_norm`, which we turn off: times √‖G‖_F / n
    krum                      theirs adds distances, the paper and we squared distances: theirs is
                              compared with a loop in NumPy that adds distances, ours with one
                              that adds squares; "same choice" counts where both choose alike
    the others                nothing; aligned_mtl's weights are 1/n on both sides

What is compared on part of the matrices:

    pcgrad, gradvac           two tasks only: with more the result depends on a random order
    imtl_g                    no more tasks than parameters: there may be no equal projections with
                              more, and then theirs takes G⁺ d, we K⁺ 1 of unit gradients
    nash_mtl                  likewise: there may be no bargain
    trimmed_mean, krum        at least 4 tasks

Their upgrad and dual_projection add a ridge to G, 1e-4 of its trace, which they let us set: a
second row has 1e-10. They and cagrad take a G with a trace below 1e-4 for 0, which ours do not;
no matrix here comes near. Their mgda is Frank-Wolfe's method, which we let take 1000 steps.

Rules that only one side has, and those that draw a number for every coordinate or task, are left
out.
"""

import argparse
import functools
import json
import pathlib
import subprocess
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import nnls

from maml_jax import aggregation as agg
from peer_process import PeerError, python_of
from report_table import show, write

GOAL = 1e-4
SHAPES = ((2, 5), (2, 64), (3, 16), (4, 128), (8, 32), (8, 512), (16, 64), (12, 5))
NUM_SEEDS = 25
C = 0.4

RULES = {
    "mean": agg.mean(),
    "sum": agg.sum(),
    "trimmed_mean": agg.trimmed_mean(1),
    "krum": agg.krum(1, 2),
    "mgda": agg.mgda(),
    "upgrad": agg.upgrad(),
    "upgrad, ridge 1e-10": agg.upgrad(),
    "dual_projection": agg.dual_projection(),
    "dual_projection, ridge 1e-10": agg.dual_projection(),
    "pcgrad": agg.pcgrad(),
    "gradvac": agg.gradvac(2, decay=0.5),
    "cagrad": agg.cagrad(C),
    "imtl_g": agg.imtl_g(),
    "nash_mtl": agg.nash_mtl(),
    "aligned_mtl": agg.aligned_mtl(),
    "aligned_mtl median": agg.aligned_mtl("median"),
    "aligned_mtl rmse": agg.aligned_mtl("rmse"),
    "config": agg.config(),
}
EXPLANATIONS = {
    "krum": "distances, not their squares",
    "mgda": "Frank-Wolfe has not converged",
    "upgrad": "their ridge, 1e-4",
    "dual_projection": "their ridge, 1e-4",
    "cagrad": "their solver's tolerance",
}


def asked_for(rule, matrix):
    """Says whether both sides are to give the same on a matrix `[T, P]`."""
    num_tasks, num_params = matrix.shape
    if rule in ("pcgrad", "gradvac"):
        return num_tasks == 2
    if rule in ("imtl_g", "nash_mtl"):
        return num_tasks <= num_params
    return rule not in ("trimmed_mean", "krum") or num_tasks >= 4


def converted(rule, theirs, matrix):
    """Turns their result into what it is on our scale."""
    if rule in ("pcgrad", "gradvac", "config"):
        return theirs / len(matrix)
    if rule == "cagrad":
        return theirs / (1 + C)
    if rule == "nash_mtl":
        return theirs * np.sqrt(np.linalg.norm(matrix @ matrix.T)) / len(matrix)
    return theirs


def matrices():
    """Gives 200 matrices `[T, P]` by name; the odd ones with a common direction."""
    made = {}
    for shape in SHAPES:
        for seed in range(NUM_SEEDS):
            rng = np.random.default_rng((*shape, seed))
            common = rng.normal(size=shape[1]) * (seed % 2)
            made[f"{shape[0]}x{shape[1]}-{seed}"] = rng.normal(size=shape) + common
    return made


@functools.partial(jax.jit, static_argnums=0)
def ours(rule, matrix):
    ids = jnp.arange(len(matrix))
    return agg.aggregate(rule, matrix, key=jax.random.key(0), task_ids=ids)


def krum_loop(matrix, power):
    """Adds a power of the distances to the n - 3 nearest others; averages the best two."""
    apart = np.linalg.norm(matrix[:, None] - matrix[None], axis=-1) ** power
    scores = [np.sort(np.delete(row, i))[: len(matrix) - 3].sum() for i, row in enumerate(apart)]
    return matrix[np.argsort(scores)[:2]].mean(0)


def third_opinion(rule, matrix):
    """Solves the quadratic program of a rule by NNLS on the gradients, if it has one."""

    def least(columns, target):
        return nnls(columns, target, maxiter=100_000)[0]

    if rule == "mgda":
        lifted = np.concatenate([matrix.T, np.ones((1, len(matrix)))])
        weights = least(lifted, np.eye(len(lifted))[-1])
        return weights @ matrix / weights.sum()
    if rule.startswith(("upgrad", "dual_projection")):
        sources = matrix if rule.startswith("upgrad") else [matrix.mean(0)]
        return np.mean([g + least(matrix.T, -g) @ matrix for g in sources], axis=0)
    return None


def difference(first, second, matrix):
    floor = np.sqrt(np.square(matrix).sum(1).mean()) / 100
    longest = max(np.linalg.norm(first), np.linalg.norm(second), floor)
    return float(np.linalg.norm(first - second) / longest)


def ask_peer(python, made, asked):
    """Computes their side in its environment; returns the results and the versions."""
    program = pathlib.Path(__file__).parent / "torchjd_side.py"
    with tempfile.TemporaryDirectory() as folder:
        source, target = (pathlib.Path(folder) / name for name in ("made.npz", "results.npz"))
        np.savez(source, asked=json.dumps(asked), **made)
        command = [python, program, source, target]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise PeerError(done.stderr.strip().splitlines()[-1])
        with np.load(target) as file:
            return {name: file[name] for name in file.files}, json.loads(done.stdout)


def compare(rule, made, theirs):
    """Compares one rule on all its matrices."""
    differences, exact, same = {}, {"ours": [], "theirs": []}, 0
    for name, result in theirs.items():
        matrix = made[name]
        other = converted(rule, result, matrix)
        mine = np.asarray(ours(RULES[rule], jnp.asarray(matrix)))
        third = third_opinion(rule, matrix)
        if third is not None:
            exact["ours"].append(difference(mine, third, matrix))
            exact["theirs"].append(difference(other, third, matrix))
        if rule == "krum":
            same += np.allclose(mine, other)
            np.testing.assert_allclose(mine, krum_loop(matrix, 2), rtol=1e-12)
            mine = krum_loop(matrix, 1)
        differences[name] = difference(mine, other, matrix)
    values = np.array(list(differences.values()))
    return {
        "rule": rule,
        "matrices": len(values),
        "worst": float(values.max()),
        "worst_matrix": max(differences, key=lambda name: differences[name]),
        "median": float(np.median(values)),
        "num_above_goal": int((values > GOAL).sum()),
        "explanation": EXPLANATIONS.get(rule, ""),
        **({"num_same_choice": int(same)} if rule == "krum" else {}),
        **{f"worst_{side}_to_nnls": max(errors) for side, errors in exact.items() if errors},
    }


def row(result):
    def number(name):
        return f"{result[name]:.0e}" if name in result else ""

    explanation = result["explanation"]
    if "num_same_choice" in result:
        explanation += f"; same choice: {result['num_same_choice']}"
    return (
        result["rule"],
        number("worst"),
        number("median"),
        f"{result['num_above_goal']} of {result['matrices']}",
        explanation,
        number("worst_ours_to_nnls"),
        number("worst_theirs_to_nnls"),
    )


def main():
    """Computes both sides, prints the table, writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here = pathlib.Path(__file__).parent
    parser.add_argument("--environments", type=pathlib.Path, default=here / "environments")
    parser.add_argument("--output", type=pathlib.Path, default=here / "results" / "agreement.json")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    made = matrices()
    asked = {rule: [name for name in made if asked_for(rule, made[name])] for rule in RULES}
    theirs, versions = ask_peer(python_of("torchjd", options.environments), made, asked)
    results = [
        compare(rule, made, {name: theirs[f"{rule}/{name}"] for name in names})
        for rule, names in asked.items()
    ]
    write(options.output, {"peer": versions, "goal": GOAL, "results": results})
    columns = ("rule", "worst", "median", f"above {GOAL}", "why", "ours to NNLS", "theirs to NNLS")
    title = f"relative differences from TorchJD {versions['torchjd']}"
    show(title, [row(result) for result in results], columns)


if __name__ == "__main__":
    main()
