"""The degree of every optimizer in optax, and what changes when task gradients are summed.

    python experiments/optimizers/run.py [--folder experiments/optimizers]

Every public function of `optax` and `optax.contrib` that returns a transformation and runs
without more than gradients, parameters and the loss value is probed by
`maml_jax.reduction_report` with B = 32. Writes result.json, degrees.png and the tables in
README.md. Two minutes of one CPU core; no seed, no data.
"""

import argparse
import functools
import inspect
import json
import pathlib
import platform
import warnings
from importlib.metadata import version

import chart
import jax
import jax.numpy as jnp
import optax
import optax.contrib
import tables

import maml_jax as mj

BATCH = 32
SGD = optax.sgd(1e-2)
ARGUMENTS = {
    "learning_rate": 1e-2,
    "max_norm": 1.0,
    "max_delta": 0.1,
    "threshold": 1.0,
    "clipping": 0.01,
    "decay": 0.9,
    "step_size": -1e-2,
    "step_size_fn": optax.linear_schedule(1e-2, 1e-3, 100),
    "eta": 0.01,
    "gamma": 0.55,
    "key": 0,
    "inner": SGD,
    "base_optimizer": SGD,
    "max_consecutive_errors": 3,
    "max_backtracking_steps": 5,
    "max_linesearch_steps": 5,
    "l2_norm_clip": 1.0,
    "noise_multiplier": 0.1,
    "seed": 0,
}
LEFT_OUT = {
    "chain": "joins others",
    "named_chain": "joins others",
    "monitor": "only watches",
    "snapshot": "only watches",
    "measure_with_ema": "only watches",
    "init_empty_state": "makes a state",
    "with_extra_args_support": "changes the signature only",
    "lbfgs": "calls the loss (line search)",
    "scale_by_backtracking_linesearch": "calls the loss (line search)",
    "scale_by_zoom_linesearch": "calls the loss (line search)",
    "scale_by_lbfgs": "measures curvature: needs gradients of one function",
    "sophia": "calls the loss (Hessian-vector products)",
    "hutchinson_estimator_diag_hessian": "calls the loss (Hessian-vector products)",
    "scale_by_muon": "needs labels of its leaves; see muon",
    "mechanize": "see the rows that start from zero",
    "lookahead": "parameters must be pairs of its own kind",
    "sam": "needs gradients at two points for one step",
    "differentially_private_aggregate": "takes one gradient per example, with an axis of its own",
    "dpsgd": "takes one gradient per example, with an axis of its own",
    "set_to_zero": "does not move",
    "keep_params_nonnegative": "needs parameters that are not negative",
}
WIDE = {"wide": jnp.full((128, 128), 0.02)}
ZERO = {"matrix": jnp.zeros((4, 3)), "vector": jnp.zeros(5)}
COMBINED = {
    "sgd, momentum": optax.sgd(1e-2, momentum=0.9),
    "sgd, nesterov": optax.sgd(1e-2, momentum=0.9, nesterov=True),
    "adam, eps 1e-3": optax.adam(1e-2, eps=1e-3),
    "rmsprop, eps not under the root": optax.rmsprop(1e-2, eps_in_sqrt=False),
    "sgd + L2 5e-4": optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(1e-2)),
    "adam + L2 5e-4": optax.chain(optax.add_decayed_weights(5e-4), optax.adam(1e-2)),
    "clip, global norm 1, sgd": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1e-2)),
    "clip, global norm 1, adam": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2)),
    "clip, entries 0.1, sgd": optax.chain(optax.clip(0.1), optax.sgd(1e-2)),
    "clip, entries 10, adam": optax.chain(optax.clip(10.0), optax.adam(1e-2)),
    "adaptive clip 0.01, sgd": optax.chain(optax.adaptive_grad_clip(0.01), optax.sgd(1e-2)),
    "MultiSteps 4, sgd": optax.MultiSteps(optax.sgd(1e-2), 4).gradient_transformation(),
    "apply_every 4, sgd": optax.chain(optax.apply_every(4), optax.sgd(1e-2)),
}
ELSEWHERE = {  # name: (optimizer, parameters)
    "adafactor, factored": (optax.adafactor(1e-2), WIDE),
    "galore, rank 8": (optax.contrib.galore(1e-2, rank=8), WIDE),
    # Their first updates, 1e-6 of the base optimizer's, vanish in the rounding of others.
    "mechanize, sgd, from zero": (optax.contrib.mechanize(SGD), ZERO),
    "mechanize, adam, from zero": (optax.contrib.mechanize(optax.adam(1e-2)), ZERO),
}


def factories():
    """Yields (name, function) of what makes, or may make, a transformation."""
    seen = set()
    for module in (optax, optax.contrib):
        for name, function in sorted(vars(module).items()):
            written = inspect.isfunction(function) or isinstance(function, functools.partial)
            if name.startswith("_") or not written or name in seen:
                continue
            made = str(inspect.signature(function).return_annotation)
            if "GradientTransformation" in made or made == str(inspect.Signature.empty):
                seen.add(name)
                yield name, function


def make(name, function):
    """Calls a factory with the table's arguments: (transformation or None, why not)."""
    required = [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    missing = [name for name in required if name not in ARGUMENTS]
    if missing:
        return None, "needs " + ", ".join(missing)
    made = function(**{name: ARGUMENTS[name] for name in required})
    if kind_of(name) == "piece":
        made = optax.chain(made, optax.scale(-1e-2))
    return (made, "") if isinstance(made, optax.GradientTransformation) else (None, "")


def kind_of(name):
    """Optimizers of their own, or pieces of one."""
    pieces = ("scale", "clip", "add_", "adaptive_", "apply_", "centralize", "ema", "identity")
    pieces += (
        "keep_",
        "normalize",
        "trace",
        "zero_",
        "flatten",
        "split_",
        "reduce_on",
        "stateless",
    )
    return "piece" if name.startswith(pieces) else "optimizer"


def probe(name, kind, optimizer, *, params=None):
    report = mj.reduction_report(optimizer, BATCH, params=params)
    print(f"{name:36} {report.degree:6} {report.effect:.1e}")
    return {
        "name": name,
        "kind": kind,
        "degree": report.degree,
        "base_degree": report.base_degree,
        "exponents": {f"{norm:g}": round(p, 3) for norm, p in report.exponents.items()},
        "effect": float(f"{report.effect:.2g}"),
        "settings": dict(report.settings),
        "reasons": list(report.reasons),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path(__file__).parent)
    folder = parser.parse_args().folder
    warnings.filterwarnings("ignore", "Specifying a key will be required")

    rows, left_out = [], dict(LEFT_OUT)
    for name, function in factories():
        if name in LEFT_OUT:
            continue
        optimizer, why = make(name, function)
        if optimizer is None:
            annotated = "GradientTransformation" in str(inspect.signature(function))
            left_out.update({name: why} if annotated else {})
            continue
        try:
            rows.append(probe(name, kind_of(name), optimizer))
        except ValueError as error:
            left_out[name] = str(error).split("got: ")[-1].split(" If its settings")[0]
    rows += [probe(name, "combined", optimizer) for name, optimizer in COMBINED.items()]
    rows += [probe(name, "combined", o, params=p) for name, (o, p) in ELSEWHERE.items()]

    result = {
        "meta_batch_size": BATCH,
        "versions": {name: version(name) for name in ("jax", "optax", "numpy")},
        "python": platform.python_version(),
        "dtype": "float32",
        "device": jax.default_backend(),
        "optimizers": rows,
        "left_out": dict(sorted(left_out.items())),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    chart.draw(rows, folder / "degrees.png")
    tables.write(result, folder / "README.md")


if __name__ == "__main__":
    main()
