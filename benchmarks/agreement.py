"""Do our rules give what TorchJD's released package gives? On 200 random matrices in float64.

    python benchmarks/agreement.py [--environments FOLDER] [--output FILE]

A difference is ‖ours - theirs‖ over the longer of the two, or over 1% of the root mean square
of the gradients' lengths if both are shorter, as where 0 is the right answer. Both sides get the
same matrices: 2 to 16 tasks, 5 to 512 parameters, with and without a common direction.

What is converted from their conventions to ours, on which n identical gradients g give g:

    pcgrad, gradvac, config   theirs sum over the n tasks: divided by n
    cagrad                    theirs gives (1 + c) g: divided by 1 + c
    nash_mtl                  theirs solves G c = 1/c, which has degree 0, and then clips to
                              `max_norm`, which we turn off: times √‖G‖_F / n
    krum                      theirs adds distances, the paper and we squared distances: compared
                              with a loop in NumPy that adds distances, and ours with one that
                              adds squares; "same choice" counts where both choose alike
    mean, sum, trimmed_mean, aligned_mtl, upgrad, dual_projection, mgda, imtl_g    nothing

What is compared on part of the matrices:

    pcgrad, gradvac           two tasks only: with more the result depends on a random order
    imtl_g                    no more tasks than parameters: theirs takes G⁺ d, and we K⁺ 1 of
                              unit gradients, which differ where no equal projections exist
    nash_mtl                  likewise: there may be no bargain
    cagrad, upgrad, dual_projection   all; theirs treats a G whose trace is below 1e-4 as 0,
                              which none of the matrices comes near

theirs of mgda is Frank-Wolfe's method, which we let take 3000 steps; its result is longer than
ours wherever they differ ("shorter" counts how often ours is, up to rounding). Rules that only
one side has, and those that draw numbers for every coordinate, are left out.
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

from maml_jax import aggregation as agg
from peer_process import PeerError, python_of
from report_table import show, write

GOAL = 1e-4
SHAPES = ((2, 5), (2, 64), (3, 16), (4, 128), (8, 32), (8, 512), (16, 64), (12, 5))
NUM_SEEDS = 25
C = 0.4


def length_of_gram(matrix):
    return np.linalg.norm(matrix @ matrix.T)


UNCHANGED = lambda theirs, matrix: theirs  # noqa: E731
OVER_N = lambda theirs, matrix: theirs / len(matrix)  # noqa: E731
ALL = lambda matrix: True  # noqa: E731
PAIRS = lambda matrix: len(matrix) == 2  # noqa: E731
FEW_TASKS = lambda matrix: len(matrix) <= matrix.shape[1]  # noqa: E731
ENOUGH = lambda matrix: len(matrix) >= 4  # noqa: E731

RULES = {  # Ours, theirs converted, where, and what explains a difference.
    "mean": (agg.mean(), UNCHANGED, ALL, ""),
    "sum": (agg.sum(), UNCHANGED, ALL, ""),
    "trimmed_mean": (agg.trimmed_mean(1), UNCHANGED, ENOUGH, ""),
    "krum": (agg.krum(1, 2), UNCHANGED, ENOUGH, "theirs adds distances, ours squares"),
    "mgda": (agg.mgda(), UNCHANGED, ALL, "theirs has not converged"),
    "upgrad": (agg.upgrad(), UNCHANGED, ALL, "theirs adds a ridge to G"),
    "dual_projection": (agg.dual_projection(), UNCHANGED, ALL, "theirs adds a ridge to G"),
    "pcgrad": (agg.pcgrad(), OVER_N, PAIRS, ""),
    "gradvac": (agg.gradvac(2, decay=0.5), OVER_N, PAIRS, ""),
    "cagrad": (agg.cagrad(C), lambda theirs, _: theirs / (1 + C), ALL, "their solver's tolerance"),
    "imtl_g": (agg.imtl_g(), UNCHANGED, FEW_TASKS, ""),
    "nash_mtl": (
        agg.nash_mtl(),
        lambda theirs, matrix: theirs * np.sqrt(length_of_gram(matrix)) / len(matrix),
        FEW_TASKS,
        "their solver's tolerance",
    ),
    "aligned_mtl": (agg.aligned_mtl(), UNCHANGED, ALL, ""),
    "aligned_mtl median": (agg.aligned_mtl("median"), UNCHANGED, ALL, ""),
    "aligned_mtl rmse": (agg.aligned_mtl("rmse"), UNCHANGED, ALL, ""),
    "config": (agg.config(), OVER_N, ALL, ""),
}


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


def krum_loop(matrix, distance):
    """Adds a power of the distances to the n - 3 nearest others; averages the best two."""
    apart = distance(np.square(matrix[:, None] - matrix[None]).sum(-1))
    scores = [np.sort(np.delete(row, i))[: len(matrix) - 3].sum() for i, row in enumerate(apart)]
    return matrix[np.argsort(scores)[:2]].mean(0)


def difference(mine, theirs, matrix):
    floor = np.sqrt(np.square(matrix).sum(1).mean()) / 100
    return np.linalg.norm(mine - theirs) / max(*map(np.linalg.norm, (mine, theirs)), floor)


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


def compare(name, made, theirs):
    """Compares one rule on all its matrices."""
    rule, convert, _, explanation = RULES[name]
    pairs = {
        key: (np.asarray(ours(rule, jnp.asarray(made[key]))), convert(result, made[key]))
        for key, result in theirs.items()
    }
    result = {"rule": name, "matrices": len(pairs)}
    if name == "krum":
        same = [np.allclose(*pair) for pair in pairs.values()]
        result["same choice"] = int(np.sum(same))
        for key, (mine, other) in pairs.items():
            assert np.allclose(mine, krum_loop(made[key], lambda squares: squares))
            pairs[key] = krum_loop(made[key], np.sqrt), other
    if name == "mgda":
        longer = [np.linalg.norm(b) - np.linalg.norm(a) for a, b in pairs.values()]
        result["shorter"] = int(np.sum(np.array(longer) >= -1e-8))
    differences = [difference(*pair, made[key]) for key, pair in pairs.items()]
    result |= {
        "worst": float(np.max(differences)),
        "median": float(np.median(differences)),
        "above the goal": int(np.sum(np.array(differences) > GOAL)),
        "worst matrix": list(pairs)[int(np.argmax(differences))],
    }
    return result | ({"explanation": explanation} if explanation else {})


def main():
    """Computes both sides, prints the table, writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here = pathlib.Path(__file__).parent
    parser.add_argument("--environments", type=pathlib.Path, default=here / "environments")
    parser.add_argument("--output", type=pathlib.Path, default=here / "results" / "agreement.json")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    made = matrices()
    asked = {
        name: [key for key, matrix in made.items() if where(matrix)]
        for name, (_, _, where, _) in RULES.items()
    }
    theirs, versions = ask_peer(python_of("torchjd", options.environments), made, asked)
    results = [
        compare(name, made, {key: theirs[f"{name}/{key}"] for key in keys})
        for name, keys in asked.items()
    ]
    write(options.output, {"peer": versions, "goal": GOAL, "results": results})
    rows = [
        (
            result["rule"],
            f"{result['worst']:.0e}",
            f"{result['median']:.0e}",
            str(result["matrices"]),
            str(result["above the goal"]),
            "; ".join(
                [f"{kind}: {result[kind]}" for kind in ("same choice", "shorter") if kind in result]
                + [result.get("explanation", "")]
            ).strip("; "),
        )
        for result in results
    ]
    columns = ("rule", "worst", "median", "matrices", f"above {GOAL}", "explanation")
    show(f"against TorchJD {versions['torchjd']}, relative differences", rows, columns)


if __name__ == "__main__":
    main()
