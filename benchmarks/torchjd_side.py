"""TorchJD's aggregators on the matrices of a file; runs in the environment of that package.

    python torchjd_side.py MATRICES RESULTS

Prints the versions as JSON. Writes an array for each rule and matrix, named as "rule/matrix".
"""

import importlib.metadata
import json
import sys
import warnings

import numpy as np
import torch
from torchjd import aggregation as jd
from torchjd.linalg import QuadprogProjector

RIDGE = 1e-10
RULES = {  # From the number of tasks to an aggregator without a past.
    "mean": lambda n: jd.Mean(),
    "sum": lambda n: jd.Sum(),
    "trimmed_mean": lambda n: jd.TrimmedMean(1),
    "krum": lambda n: jd.Krum(1, 2),
    "mgda": lambda n: jd.MGDA(epsilon=1e-12, max_iters=1000),
    "upgrad": lambda n: jd.UPGrad(),
    "upgrad, ridge 1e-10": lambda n: jd.UPGrad(projector=QuadprogProjector(reg_eps=RIDGE)),
    "dual_projection": lambda n: jd.DualProj(),
    "dual_projection, ridge 1e-10": lambda n: jd.DualProj(
        projector=QuadprogProjector(reg_eps=RIDGE)
    ),
    "pcgrad": lambda n: jd.PCGrad(),
    "gradvac": lambda n: jd.GradVac(beta=0.5),
    "cagrad": lambda n: jd.CAGrad(c=0.4),
    "imtl_g": lambda n: jd.IMTLG(),
    "nash_mtl": lambda n: jd.NashMTL(n_tasks=n, max_norm=0.0, optim_niter=100),
    "aligned_mtl": lambda n: jd.AlignedMTL(),
    "aligned_mtl median": lambda n: jd.AlignedMTL(scale_mode="median"),
    "aligned_mtl rmse": lambda n: jd.AlignedMTL(scale_mode="rmse"),
    "config": lambda n: jd.ConFIG(),
}


def main():
    """Computes every rule on every matrix on which it is asked for."""
    torch.manual_seed(0)
    with np.load(sys.argv[1]) as file:
        asked = json.loads(str(file["asked"]))
        matrices = {name: torch.from_numpy(file[name]) for name in file.files if name != "asked"}
    results = {}
    for rule, names in asked.items():
        for name in names:
            aggregator = RULES[rule](len(matrices[name]))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Solvers that only nearly converge say so.
                results[f"{rule}/{name}"] = aggregator(matrices[name]).numpy()
    np.savez(sys.argv[2], **results)
    packages = ("torchjd", "torch", "numpy", "cvxpy")
    print(json.dumps({name: importlib.metadata.version(name) for name in packages}))


if __name__ == "__main__":
    main()
