"""E8: images. Are meta-gradients correlated, and does the sum help when they are?

    python experiments/aggregation/e8_images.py [--quick] [--data-dir DIR] [NAMES]

Omniglot comes from --data-dir or MAML_JAX_DATA_DIR, glyphs with the library. Finished cells are
kept.
"""

import argparse
import dataclasses
import functools
import pathlib

import e8_training as training
import jax
from e8_cells import carry, clip, tune_base
from e8_gradients import diagnose
from e8_training import Bench
from records import cell

import maml_jax as mj
from maml_jax.data.classes import select

NAMES = ("omniglot", "glyphs", "omniglot sets", "omniglot conv4")
STATES = (0, 32, 128, 512)  # outer steps at which gradients are diagnosed
THRESHOLDS = (1 / 8, 1 / 2, 2.0, 8.0, 32.0)  # in units of the usual norm of the mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Which cells are computed for a bench.

    Attributes:
      optimizers: names of OPTIMIZERS.
      states: steps at which gradients are diagnosed.
      num_batches: meta-batches of a diagnosis.
      diagnosed: lanes that are diagnosed.
      thresholds: of clipping, in units of the usual norm; none leaves E8c out.
      carries: whether learning rates are carried over (E8b).
    """

    optimizers: tuple = ("momentum", "adam")
    states: tuple = STATES
    num_batches: int = 128
    diagnosed: int = 4
    thresholds: tuple = THRESHOLDS
    carries: bool = True


def benches(names, data_dir=None):
    """Makes the benches of names, of NAMES, with their plans."""
    mlp = mj.models.Mlp(features=(64, 64, training.WAY))
    conv = mj.models.Conv4(training.WAY, features=8)
    load = {
        "omniglot": lambda: mj.data.omniglot(data_dir=data_dir, image_size=14),
        "glyphs": lambda: mj.data.glyphs(image_size=14),
    }
    made = []
    for name in names:
        splits = load[name.split()[0]]()
        flat = not name.endswith("conv4")
        sizes = {"omniglot": (4, 16, 32), "glyphs": (4, 16)}.get(name, (16,))
        model = mlp if flat else conv
        bench = Bench(name=name, splits=splits, model=model, flat=flat, sizes=sizes)
        plan = Plan()
        if name == "omniglot sets":
            bench = dataclasses.replace(bench, splits=in_sets(splits))
            plan = Plan(thresholds=())
        if name == "omniglot conv4":
            plan = Plan(thresholds=())
        made.append((bench, plan))
    return made


def in_sets(splits):
    """Parts the characters of each alphabet to learn from into fixed sets of five."""
    members, chosen, groups = {}, [], []
    for index, name in enumerate(splits.meta_train.groups):
        members.setdefault(name, []).append(index)
    for name, indices in members.items():
        for first in range(0, len(indices) - training.WAY + 1, training.WAY):
            chosen += indices[first : first + training.WAY]
            groups += [f"{name} {first // training.WAY}"] * training.WAY
    kept = dataclasses.replace(select(splits.meta_train, chosen), groups=tuple(groups))
    return dataclasses.replace(splits, meta_train=kept)


def quick(splits):
    """The same code at sizes that say nothing about the questions."""
    model = mj.models.Mlp(features=(16, training.WAY))
    sizes = {"steps": 16, "sizes": (4,), "lanes": 3, "tuning_seeds": 2, "held_out": 40}
    bench = Bench(name="glyphs", splits=splits, model=model, flat=True, **sizes)
    states = {"states": (0, 8), "num_batches": 4, "diagnosed": 2}
    return bench, Plan(optimizers=("adam",), thresholds=(1 / 8, 32.0), **states)


def run(budget, *, names=NAMES, data_dir=None):
    """Runs every cell that is not on disk yet, at the sizes of a `budget.Budget`."""
    if budget.steps < 256:
        study(*quick(mj.data.glyphs(image_size=14)), budget.folder)
        return
    for bench, plan in benches(names, data_dir):
        study(bench, plan, budget.folder)


def study(bench, plan, folder):
    """Runs the cells of a bench: learning rates at B = 1, E8a, E8c, then E8b."""
    path = pathlib.Path(folder) / f"e8_{bench.name.replace(' ', '_')}.json"
    settings = settings_of(bench)
    rates = {}
    for optimizer in plan.optimizers:
        compute = functools.partial(tune_base, bench, optimizer)
        rates[optimizer] = cell(path, f"{optimizer} base", settings, compute)["rate"]
    settings = {**settings, "rates": rates}
    for sampling in training.SAMPLINGS:
        compute = functools.partial(diagnose, bench, plan, sampling, rates["adam"])
        cell(path, f"diagnosis {sampling}", {**settings, **_of(plan)}, compute)
    for sampling in training.SAMPLINGS if plan.thresholds else ():
        compute = functools.partial(clip, bench, plan, sampling, rates["adam"])
        cell(path, f"clipping {sampling}", {**settings, **_of(plan)}, compute)
    for num_tasks in bench.sizes if plan.carries else ():
        for optimizer in plan.optimizers:
            for sampling in training.SAMPLINGS:
                args = (bench, optimizer, sampling, num_tasks, rates[optimizer])
                name = f"{optimizer} {sampling} B={num_tasks}"
                cell(path, name, settings, functools.partial(carry, *args))


def settings_of(bench):
    """What all cells of a bench depend on."""
    names = ("steps", "lanes", "tuning_seeds", "held_out")
    model = f"{type(bench.model).__name__} {bench.model.features}"
    return {
        **{name: getattr(bench, name) for name in names},
        "model": model,
        "classes": bench.splits.meta_train.num_classes,
    }


def _of(plan):
    names = ("states", "num_batches", "diagnosed", "thresholds")
    return {name: getattr(plan, name) for name in names}


def main(arguments=None):
    """Runs E8 from the command line."""
    import budget

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=NAMES, help=f"of {NAMES}; all by default")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, in another folder")
    parser.add_argument("--folder", type=pathlib.Path, help="where results go")
    parser.add_argument("--data-dir", help="TFDS data folder with Omniglot")
    options = parser.parse_args(arguments)
    here = pathlib.Path(__file__).resolve().parent
    folder = options.folder or here / ("quick" if options.quick else "results")
    if options.quick:  # nearly all of the time is spent compiling
        jax.config.update("jax_disable_most_optimizations", True)
    sizes = (budget.quick if options.quick else budget.full)(folder)
    run(sizes, names=options.names, data_dir=options.data_dir)


if __name__ == "__main__":
    main()
