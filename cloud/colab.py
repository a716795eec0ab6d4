# %% [markdown]
# # maml_jax on a TPU
#
# Trains a network that learns five unknown characters from one example each, on all devices of
# this machine, and looks at what came out: a TPU, a GPU and a CPU run the same cells.
#
# 1. In Colab, choose *Runtime → Change runtime type → v5e-1 TPU*, or any other.
# 2. Say below where the library is, and choose *Runtime → Run all*.

# %%
# What pip can install: a git address, a folder, or an archive or wheel that you uploaded.
# Leave it empty where the library is installed, or where this notebook is in its checkout.
REPOSITORY = ""  # @param {type:"string"}
# The folder of the run that `maml-jax` makes. It goes with the machine, unless it is on your Drive.
RUN_DIR = "runs/colab"  # @param {type:"string"}
# Seconds instead of minutes: shows that everything works, and learns nothing.
SMALL = False  # @param {type:"boolean"}

# %% [markdown]
# ## Install
#
# JAX comes with the library, built for what this machine has. Colab's own JAX is older.

# %%
import importlib.metadata
import importlib.util
import pathlib
import subprocess
import sys


def accelerator():
    """Names the build of JAX for this machine."""
    chips = [*pathlib.Path("/dev").glob("accel[0-9]*"), *pathlib.Path("/dev/vfio").glob("[0-9]*")]
    if chips or importlib.util.find_spec("libtpu"):
        return "tpu"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "cpu"
    return "cuda13" if int(driver.split(".")[0]) >= 580 else "cuda12"


def library():
    """Says what pip is to install."""
    is_file = REPOSITORY.endswith((".zip", ".gz", ".whl"))
    if REPOSITORY.startswith("https://") and not is_file:
        return f"git+{REPOSITORY}"
    if REPOSITORY:
        return REPOSITORY
    for folder in (pathlib.Path(), pathlib.Path("..")):
        if (folder / "maml_jax" / "outer_step.py").exists():
            return str(folder.resolve())
    raise SystemExit("Say in REPOSITORY, in the first cell, where the library is; then run all.")


try:
    print("maml_jax", importlib.metadata.version("maml-jax"))
except importlib.metadata.PackageNotFoundError:
    wanted = [library(), f"jax[{accelerator()}]"]
    print("installing", *wanted)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *wanted], check=True)
    if {"jax", "numpy"} & set(sys.modules):  # Older ones than those just installed.
        raise SystemExit("Choose Runtime → Restart session, then Run all.") from None

# %% [markdown]
# ## What is here

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import maml_jax as mj
from maml_jax import cli, plots

devices = jax.devices()
mesh = Mesh(devices, ("tasks",))  # Each device adapts to its share of the tasks.
on_tpu = devices[0].platform == "tpu"
print(f"jax {jax.__version__}, {len(devices)} x {devices[0].device_kind}")


def show(path):
    """Shows a picture that is in a file."""
    image = plt.imread(path)
    figure = plt.figure(figsize=(image.shape[1] / 160, image.shape[0] / 160), dpi=160)
    figure.add_axes((0, 0, 1, 1), xticks=[], yticks=[], frameon=False).imshow(image)
    plt.show()


# %% [markdown]
# ## Train with the library
#
# Five characters are a task: adapt to one example of each, then name others of them. Characters are
# drawn on the spot; Arabic, Armenian and Hebrew are kept for the test. Data and loop are on the
# device: `run_outer_steps` draws tasks, adapts and updates, many times a call.

# %%
calls, steps_per_call, tasks_per_device, image_size, features = 12, 100, 16, 28, 64
if SMALL:
    calls, steps_per_call, tasks_per_device, image_size, features = 2, 3, 2, 12, 4
num_tasks = tasks_per_device * len(devices)  # A multiple of the devices.

splits = mj.data.glyphs(image_size=image_size)
train_tasks = mj.data.episodes(splits.meta_train, way=5, shot=1, query_shot=5)
train_tasks = jax.device_put(train_tasks, NamedSharding(mesh, PartitionSpec()))  # On every device.
test_tasks = mj.data.episodes(splits.meta_test, way=5, shot=1, query_shot=15)

# A TPU multiplies bfloat16 at full rate; parameters and losses stay float32.
model = mj.models.Conv4(5, features=features, dtype=jnp.bfloat16 if on_tpu else None)
loss_fn = mj.losses.classification(model.apply)
inner = mj.maml(optax.sgd(2.0), num_steps=1)
outer = mj.make_outer_step(loss_fn, inner, optax.adam(1e-3), aggregation="mean", mesh=mesh)

images = jnp.zeros((1, image_size, image_size, 1))
state = outer.init(jax.jit(model.init)(jax.random.key(0), images))
curve = []
for _ in range(calls):
    state, metrics = mj.run_outer_steps(
        outer,
        train_tasks,
        state,
        jax.random.key(1),
        num_steps=steps_per_call,
        meta_batch_size=num_tasks,
    )
    curve.extend(metrics["accuracy"].tolist())
    print(f"step {int(state.step):5}  accuracy on new queries {metrics['accuracy'].mean():.1%}")

# %%
found = mj.evaluate(
    loss_fn,
    inner,
    state.params,
    test_tasks,
    key=2,
    num_tasks=20 if SMALL else 600,
    num_steps=3,
    mesh=mesh,
)
print(found)
show(
    plots.learning_curve(
        "learning_curve.png",
        train_steps=range(1, len(curve) + 1),
        train_values=curve,
        validation_steps=[],
        validation_means=[],
        validation_half_widths=[],
        metric="accuracy",
        baselines={"chance": 0.2},
        test=(found.mean, found.half_width),
        title=f"On writing systems it never saw: {found.headline()}",
    )
)
show(
    plots.inner_steps(
        "inner_steps.png",
        steps=found.inner_steps,
        means=found.means["accuracy"],
        half_widths=found.half_widths["accuracy"],
        metric="accuracy",
        trained_steps=1,
        title="What adaptation does: accuracy after each inner step",
    )
)

# %% [markdown]
# ## Mean or sum?
#
# How the gradients of these tasks relate, and whether dividing by the number of tasks matters to
# this optimizer.

# %%
print(mj.reduction_report(optax.adam(1e-3), num_tasks))

# %%
diagnosis = mj.diagnose(
    outer, state, train_tasks, key=3, meta_batch_size=num_tasks, num_batches=4 if SMALL else 16
)
print(diagnosis)
show(
    plots.diagnosis(
        "diagnosis.png",
        cosines=diagnosis.cosines,
        worth=diagnosis.worth,
        meta_batch_size=num_tasks,
        steps=[diagnosis.step],
        divisors=[diagnosis.estimates["divisor"][0]],
        half_widths=[diagnosis.estimates["divisor"][1]],
    )
)

# %% [markdown]
# ## The same by one command
#
# `maml-jax train` keeps checkpoints, compares with baselines, and draws. It is called here from
# Python, as a TPU serves one process at a time. Interrupted, it saves; run the cell again, and it
# goes on. To keep the run when the machine goes, put `RUN_DIR` on your Drive, after
# `from google.colab import drive; drive.mount("/content/drive")`.

# %%
here = f"--meta-batch-size {num_tasks} --activations {'bfloat16' if on_tpu else 'float32'}"
small = "--image-size 12 --features 4" if SMALL else ""
short = "--outer-steps 4 --steps-per-call 2 --validation-tasks 4 --test-tasks 4" if SMALL else ""
run_dir = pathlib.Path(RUN_DIR)
if (run_dir / "config.json").exists():
    cli.main(["resume", str(run_dir)])
else:
    flags = f"{here} {small} {short}".split()
    cli.main(["train", "glyphs-5way-1shot", "--run-dir", str(run_dir), *flags])

# %%
for name in ("learning_curve", "adaptation"):
    show(run_dir / f"{name}.png")

# %% [markdown]
# ## How fast is it here?
#
# Tasks a second of the paper's Omniglot setting, on noise, in the ways that tasks can run.

# %%
preset = "glyphs-5way-1shot" if SMALL else "omniglot-5way-1shot-finn2017"
cli.main(["bench", preset, "--budget", "0" if SMALL else "60", *f"{here} {small}".split()])
