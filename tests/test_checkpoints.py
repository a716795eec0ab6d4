"""Checkpoints: equal bits back, every kind of damage found, no kill leaves a half."""

import dataclasses
import errno
import json
import logging
import os
import random
import re
import shutil
import subprocess
import sys
import time
import typing
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maml_jax import checkpoint_reading, checkpoints

CONFIG = {"shots": 5, "inner": {"learning_rate": 0.4}, "widths": [40, 40]}


class Moments(typing.NamedTuple):
    mean: jax.Array
    count: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rates:
    inner: jax.Array
    nothing: None = None


def small_state(scale=1.0):
    return {"w": scale * jnp.arange(6, dtype=jnp.float32).reshape(2, 3), "b": jnp.zeros(3)}


def nasty_state():
    """One leaf of every kind that has broken a checkpoint format before."""
    odd_floats = np.array([0x7FC12345, 0xFFA00001, 0x80000000, 0x00000001], np.uint32)
    params = {"a/b.c ['d']": jnp.asarray(odd_floats.view(np.float32)), "": jnp.ones((2, 1, 3))}
    return {
        "params": params,
        "opt": optax.chain(optax.clip(1.0), optax.adam(1e-3)).init(params),
        "key": jax.random.key(7),
        "keys": jax.random.split(jax.random.key(8, impl="rbg"), 3),
        "old_key": jax.random.PRNGKey(3),
        "half": jnp.asarray([1.5, -0.0, jnp.nan], jnp.bfloat16),
        "quarter": jnp.asarray([1.5, -0.0], jnp.float8_e4m3fn),
        "nibble": jnp.asarray([-8, -1, 7], jnp.int4),
        "moments": Moments(mean=jnp.float32(2), count=jnp.int32(3)),
        "rates": Rates(inner=jnp.asarray(True)),
        "empty": ((), {}, None, jnp.zeros((0, 3))),
        "complex": jnp.asarray([1 + 2j, complex(jnp.nan, -0.0)], jnp.complex64),
        "host": np.array([np.pi, -0.0]),
        "swapped": np.arange(3, dtype=">i8"),
        "strided": np.arange(12.0).reshape(3, 4).T[::2],
        "host_scalar": np.float64(np.pi),
        "numbers": [True, 2**40, 0.1, 1j],
    }


def bits(leaf):
    """The oracle of equality: type, dtype, shape and bytes of one leaf."""
    kind = jax.Array if isinstance(leaf, jax.Array) else type(leaf)
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return kind, str(leaf.dtype), leaf.shape, np.asarray(jax.random.key_data(leaf)).tobytes()
    array = np.asarray(leaf)
    array = array.astype(array.dtype.newbyteorder("="))
    return kind, array.dtype.name, array.shape, array.tobytes()


def assert_same(got, wanted):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    assert [bits(leaf) for leaf in jax.tree.leaves(got)] == [
        bits(leaf) for leaf in jax.tree.leaves(wanted)
    ]


def copy_of(source, folder):
    shutil.copytree(source, folder)
    return folder


def files_of(path):
    return sorted(file for file in path.rglob("*") if file.is_file())


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A folder with the checkpoints of steps 0 and 1, for tests that damage a copy."""
    folder = tmp_path_factory.mktemp("pristine") / "run"
    for step in (0, 1):
        checkpoints.save(folder, step, small_state(step + 1.0), config=CONFIG)
    return folder


def test_round_trip_is_equal_in_every_bit(tmp_path):
    """Oracle: the bytes of the state in memory, NaN payloads and -0.0 included."""
    state = nasty_state()
    path = checkpoints.save(tmp_path / "new" / "run", 3, state, config=CONFIG)
    restored = checkpoints.restore(tmp_path / "new" / "run", state, config=CONFIG)
    assert restored is not None
    assert_same(restored.state, state)
    assert (path.name, restored.step, restored.config) == ("00000003", 3, CONFIG)
    assert restored.state["key"].dtype == state["key"].dtype
    assert not restored.state["params"][""].committed


def test_abstract_target_gives_arrays_on_its_sharding(tmp_path):
    """Oracle: the state as arrays; and a stream of random numbers that continues."""
    state = small_state() | {"key": jax.random.key(1)}
    checkpoints.save(tmp_path, 1, state, config={})
    restored = checkpoints.restore(tmp_path, jax.eval_shape(lambda: state))
    assert restored is not None
    assert_same(restored.state, state)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[-1])
    target = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        for name, leaf in state.items()
    }
    restored = checkpoints.restore(tmp_path, target)
    assert restored is not None
    assert_same(restored.state, state)
    assert restored.state["w"].sharding == sharding
    assert restored.state["w"].committed
    np.testing.assert_array_equal(
        jax.random.normal(restored.state["key"]), jax.random.normal(jax.random.key(1))
    )


def test_state_without_elements(tmp_path):
    state = {"none": (), "empty": jnp.zeros((0, 2))}
    checkpoints.save(tmp_path, 0, state, config={})
    restored = checkpoints.restore(tmp_path, state)
    assert restored is not None
    assert_same(restored.state, state)


def test_state_may_be_donated_after_save(tmp_path):
    state = small_state()
    checkpoints.save(tmp_path, 0, state, config={})
    for leaf in jax.tree.leaves(state):
        leaf.delete()
    restored = checkpoints.restore(tmp_path, state)
    assert restored is not None
    assert_same(restored.state, small_state())


def test_keeps_the_newest_and_never_drops_the_one_just_saved(tmp_path):
    """Steps 7 and 9 stand for an abandoned future: a resumed run saves 4 before them."""
    for step in (7, 9):
        checkpoints.save(tmp_path, step, small_state(), config={})
    for step in (1, 2, 3, 4):
        checkpoints.save(tmp_path, step, small_state(), config={})
    assert checkpoints.steps(tmp_path) == [3, 4, 7, 9]
    checkpoints.save(tmp_path, 10, small_state(), config={}, keep=3)
    assert checkpoints.steps(tmp_path) == [7, 9, 10]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000007", "00000009", "00000010"]


def test_nothing_saved_is_none_and_step_zero_is_a_step(tmp_path):
    assert checkpoints.restore(tmp_path / "missing", small_state()) is None
    assert checkpoints.restore(tmp_path, small_state()) is None
    assert checkpoints.steps(tmp_path / "missing") == checkpoints.steps(tmp_path) == []
    checkpoints.clear_unfinished(tmp_path / "missing")
    checkpoints.save(tmp_path, 0, small_state(), config={})
    restored = checkpoints.restore(tmp_path, small_state())
    assert restored is not None
    assert restored.step == 0
    assert checkpoints.steps(tmp_path) == [0]


def test_manifest_names_versions_leaves_and_files(pristine):
    manifest = checkpoints.read_manifest(pristine / "00000001")
    assert manifest["format_version"] == checkpoints.FORMAT_VERSION
    assert (manifest["step"], manifest["config"]) == (1, CONFIG)
    assert manifest["versions"]["jax"] == jax.__version__
    assert [leaf["path"] for leaf in manifest["leaves"]] == ["['b']", "['w']"]
    assert manifest["leaves"][1]["type"] == "float32[2, 3]"
    names = {
        file.relative_to(pristine / "00000001").as_posix()
        for file in files_of(pristine / "00000001")
    }
    assert set(manifest["files"]) == names - {"manifest.json", "manifest.sha256"}


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the library catches it."""


@pytest.mark.parametrize(("allowed", "survivor"), [(0, 1.0), (1, 1.0), (2, 3.0)])
def test_kill_at_any_rename_leaves_old_or_new(tmp_path, monkeypatch, allowed, survivor):
    """Replaces step 5 and dies at the first, second and third rename, as if by SIGKILL."""
    checkpoints.save(tmp_path, 5, small_state(1.0), config={})
    rename, calls = os.rename, []

    def dying(source, target, **kwargs):
        calls.extend([source] if Path(source).parent == tmp_path else [])
        if len(calls) > allowed:
            raise Killed
        rename(source, target, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", dying)
        patch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
        with pytest.raises(Killed):
            checkpoints.save(tmp_path, 5, small_state(3.0), config={})
    assert any(path.name.startswith(".") for path in tmp_path.iterdir())
    for clear in (False, True):
        if clear:
            checkpoints.clear_unfinished(tmp_path)
        assert checkpoints.steps(tmp_path) == [5]
        restored = checkpoints.restore(tmp_path, small_state())
        assert restored is not None
        assert_same(restored.state, small_state(survivor))
    assert [path.name for path in tmp_path.iterdir()] == ["00000005"]


def test_200_bit_flips_are_all_found(pristine, tmp_path):
    """Oracle: 200 seeded places over all files of the newest checkpoint, 200 found."""
    folder = copy_of(pristine, tmp_path / "run")
    newest = folder / "00000001"
    files, rng, found = files_of(newest), random.Random(0), 0
    for trial in range(200):
        file = files[trial % len(files)]
        content = file.read_bytes()
        place = rng.randrange(8 * len(content))
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        file.write_bytes(flipped)
        with pytest.raises(checkpoints.CheckpointCorruptError):
            checkpoints.verify(newest)
        found += 1
        if trial < len(files):
            with pytest.warns(UserWarning, match="Fell back to the checkpoint of step 0"):
                restored = checkpoints.restore(folder, small_state())
            assert restored is not None
            assert_same(restored.state, small_state(1.0))
        file.write_bytes(content)
    assert found == 200
    checkpoints.verify(newest)


def damage_truncate(file):
    file.write_bytes(file.read_bytes()[:-1])


def damage_empty(file):
    file.write_bytes(b"")


def damage_add(file):
    (file.parent / "extra").write_bytes(b"")


def damage_swap_for_folder(file):
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(
    "damage", [damage_truncate, damage_empty, damage_add, damage_swap_for_folder, Path.unlink]
)
def test_damage_to_any_file_is_found_and_named(pristine, tmp_path, damage):
    for index in range(len(files_of(pristine / "00000001"))):
        newest = copy_of(pristine / "00000001", tmp_path / str(index) / "00000001")
        file = files_of(newest)[index]
        damage(file)
        ours = file.parent == newest  # the two files about the others
        name = "extra" if damage is damage_add else "manifest" if ours else file.name
        with pytest.raises(checkpoints.CheckpointCorruptError, match=name):
            checkpoints.verify(newest)


def test_corruption_falls_back_and_then_refuses(pristine, tmp_path):
    folder = copy_of(pristine, tmp_path / "run")
    shutil.rmtree(folder / "00000001")
    (folder / "00000001").write_bytes(b"a file where a folder was")
    with pytest.warns(UserWarning, match="step 0: .*00000001: cannot read the manifest"):
        restored = checkpoints.restore(folder, small_state())
    assert restored is not None
    assert restored.step == 0
    shutil.rmtree(folder / "00000000" / "state")
    with pytest.raises(checkpoints.CheckpointCorruptError, match=r"No checkpoint in .* verifies"):
        checkpoints.restore(folder, small_state())
    checkpoints.save(folder, 1, small_state(4.0), config={})
    restored = checkpoints.restore(folder, small_state())
    assert restored is not None
    assert_same(restored.state, small_state(4.0))


def test_checkpoint_under_another_name_is_corrupt(pristine, tmp_path):
    path = copy_of(pristine / "00000001", tmp_path / "00000002")
    with pytest.raises(checkpoints.CheckpointCorruptError, match="holds step 1"):
        checkpoints.verify(path)


def rewrite_manifest(path, change):
    """Changes the manifest and seals it anew, as only a writer of the format can."""
    manifest = json.loads((path / "manifest.json").read_bytes())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))
    seal = subprocess.run(
        ["sha256sum", "manifest.json"], cwd=path, capture_output=True, check=True
    ).stdout
    (path / "manifest.sha256").write_bytes(seal)


def test_leaf_digest_is_checked_after_reading(pristine, tmp_path):
    """All files are as the manifest says, yet a leaf is not: Orbax read it wrong."""
    folder = copy_of(pristine, tmp_path / "run")
    rewrite_manifest(
        folder / "00000001", lambda manifest: manifest["leaves"][1].update(sha256="0" * 64)
    )
    with pytest.warns(UserWarning, match=r"leaf \['w'\] is not what was saved"):
        restored = checkpoints.restore(folder, small_state())
    assert restored is not None
    assert restored.step == 0


def test_newer_format_is_refused_with_both_versions(pristine, tmp_path):
    folder = copy_of(pristine, tmp_path / "run")
    newer = checkpoints.FORMAT_VERSION + 1
    rewrite_manifest(
        folder / "00000001", lambda manifest: manifest.update(format_version=newer, new_field=0)
    )
    message = f"format version {newer}, this maml_jax reads up to {checkpoints.FORMAT_VERSION}"
    with pytest.raises(checkpoints.CheckpointVersionError, match=message):
        checkpoints.restore(folder, small_state())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w": jnp.zeros((2, 4), jnp.float32)}, r"\['w'\]: saved float32\[2, 3\], wanted f.*2, 4"),
        ({"w": jnp.zeros((2, 3), jnp.int32)}, r"\['w'\]: saved float32\[2, 3\], wanted int32\["),
        ({"w": jax.random.key(0)}, r"\['w'\]: saved float32\[2, 3\], wanted key<fry>\[\]"),
        ({"v": jnp.zeros((2, 3))}, r"\['v'\]: saved nothing, wanted float"),
        ({"w": None}, r"\['w'\]: saved float32\[2, 3\], wanted nothing"),
    ],
)
def test_mismatch_names_the_first_leaf_and_is_no_corruption(pristine, change, message):
    with pytest.raises(checkpoints.CheckpointMismatchError, match=message):
        checkpoints.restore(pristine, small_state() | change)


def test_config_must_agree_where_it_is_given(pristine):
    assert checkpoints.restore(pristine, small_state(), config={"widths": (40, 40)}) is not None
    with pytest.raises(checkpoints.CheckpointMismatchError, match="shots: saved 5, wanted 1"):
        checkpoints.restore(pristine, small_state(), config={"shots": 1})
    with pytest.raises(checkpoints.CheckpointMismatchError, match="ways: saved nothing, wanted 5"):
        checkpoints.restore(pristine, small_state(), config={"ways": 5})


def fail_with(error):
    def failing(*args, **kwargs):
        raise error

    return failing


@pytest.mark.parametrize(
    ("owner", "name", "error"),
    [
        ("orbax", "save", ValueError("RESOURCE_EXHAUSTED: writing: No space left on device")),
        ("orbax", "save", ValueError("OUT_OF_RANGE: File too large [os_error_code='27'")),
        ("orbax", "save", OSError(errno.ENOSPC, "No space left on device")),
        (os, "fsync", OSError(errno.EIO, "Input/output error")),
        (os, "rename", OSError(errno.ENOSPC, "No space left on device")),
    ],
)
def test_failed_write_leaves_the_old_and_no_litter(tmp_path, monkeypatch, owner, name, error):
    import orbax.checkpoint as ocp

    folder = tmp_path / "run"
    checkpoints.save(folder, 1, small_state(), config={})
    message = (
        rf"Cannot write to .*run: \d+ bytes needed, \d+ bytes free: .*{re.escape(error.args[-1])}"
    )
    with monkeypatch.context() as patch:
        patch.setattr(ocp.Checkpointer if owner == "orbax" else owner, name, fail_with(error))
        for step in (1, 2):
            with pytest.raises(checkpoints.CheckpointWriteError, match=message):
                checkpoints.save(folder, step, small_state(2.0), config={})
    assert [path.name for path in folder.iterdir()] == ["00000001"]
    restored = checkpoints.restore(folder, small_state())
    assert restored is not None
    assert_same(restored.state, small_state())


def test_reading_while_a_run_goes_on_and_removes_what_was_listed(tmp_path, monkeypatch):
    """Before each of the first two is read, the run saves another two and removes the older."""
    for step in (1, 2):
        checkpoints.save(tmp_path, step, small_state(step), config={})
    verify, later = checkpoint_reading.verify, iter([(3, 4), (5, 6)])

    def while_training(path):
        manifest = verify(path)
        for step in next(later, ()):
            checkpoints.save(tmp_path, step, small_state(step), config={})
        return manifest

    monkeypatch.setattr(checkpoint_reading, "verify", while_training)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        restored = checkpoints.restore(tmp_path, small_state())
    assert restored is not None
    assert restored.step == 6
    assert_same(restored.state, small_state(6))


def test_orbax_is_there_before_anything_is_verified(tmp_path):
    """It takes seconds to import, in which a run that trains may remove what was verified."""
    checkpoints.save(tmp_path, 1, {"w": np.ones(2)}, config={})
    code = f"""
import sys
import numpy as np
from maml_jax import checkpoint_reading, checkpoints
verify, loaded = checkpoint_reading.verify, []
def watched(path):
    loaded.append("orbax.checkpoint" in sys.modules)
    return verify(path)
checkpoint_reading.verify = watched
checkpoints.restore("no_such_folder", {{"w": np.ones(2)}})
assert "orbax" not in sys.modules
checkpoints.restore({str(tmp_path)!r}, {{"w": np.ones(2)}})
print(loaded)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[True]\n", "")


def test_a_file_that_may_not_grow_is_a_failed_write(tmp_path):
    """The system's limit of a file's size, where TensorStore says OUT_OF_RANGE; nothing else is."""
    code = f"""
import resource
import numpy as np
from maml_jax import checkpoints
checkpoints.save({str(tmp_path)!r}, 0, {{"w": np.zeros(1)}}, config={{}})
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    state = {{"w": np.random.default_rng(0).normal(size=100_000)}}
    checkpoints.save({str(tmp_path)!r}, 1, state, config={{}})
except checkpoints.CheckpointWriteError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.match(rf"Cannot write to {tmp_path}: 800000 bytes .*File too large", done.stdout)
    assert done.stderr == ""
    assert [path.name for path in tmp_path.iterdir()] == ["00000000"]


def test_other_orbax_errors_are_not_disguised(tmp_path, monkeypatch):
    import orbax.checkpoint as ocp

    monkeypatch.setattr(ocp.Checkpointer, "save", fail_with(ValueError("a programming error")))
    with pytest.raises(ValueError, match="a programming error"):
        checkpoints.save(tmp_path, 0, small_state(), config={})
    assert list(tmp_path.iterdir()) == []


def test_really_full_disk(tmp_path):
    """A tmpfs of 1 MiB, where the machine lets us mount one: the message, the old step."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("cannot mount a tmpfs here: needs root")
    try:
        checkpoints.save(tmp_path, 0, small_state(), config={})
        noise = np.random.default_rng(0).normal(size=250_000)
        with pytest.raises(checkpoints.CheckpointWriteError, match="2000000 bytes needed"):
            checkpoints.save(tmp_path, 1, {"noise": noise}, config={})
        with pytest.raises(checkpoints.CheckpointWriteError, match="No space left"):
            checkpoints.check_writable(tmp_path, 2_000_000)
        assert [path.name for path in tmp_path.iterdir()] == ["00000000"]
        assert checkpoints.restore(tmp_path, small_state()) is not None
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_check_writable_fails_before_the_first_step(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(checkpoints.CheckpointWriteError, match=r"Cannot write to .*file"):
            checkpoints.check_writable(folder, 1)
        with pytest.raises(checkpoints.CheckpointWriteError, match=r"Cannot write to .*file"):
            checkpoints.save(folder, 0, small_state(), config={})
    with pytest.raises(checkpoints.CheckpointWriteError, match="No space left"):
        checkpoints.check_writable(tmp_path, 10**18)
    checkpoints.check_writable(tmp_path / "a" / "b", 1)
    assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": -1}, "step must be at least 0, got -1"),
        ({"keep": 1}, "keep must be at least 2, got 1"),
        ({"config": {"loss": print}}, "config must be what JSON can hold"),
        ({"config": {"clip": float("inf")}}, "config must be what JSON can hold"),
        ({"state": {"name": "x"}}, "leaf must be an array or a number, got dtype <U1"),
    ],
)
def test_bad_arguments_are_refused_at_the_door(tmp_path, changes, message):
    arguments = {"step": 0, "state": small_state(), "config": {}} | changes
    with pytest.raises(ValueError, match=message):
        checkpoints.save(tmp_path, arguments.pop("step"), arguments.pop("state"), **arguments)
    assert list(tmp_path.iterdir()) == []


def test_orbax_is_silent_even_if_the_user_logs_everything(tmp_path, caplog, capfd):
    level = logging.getLogger("absl").level
    with caplog.at_level(logging.DEBUG):
        checkpoints.save(tmp_path, 0, small_state(), config={})
        checkpoints.restore(tmp_path, small_state())
    assert [record for record in caplog.records if record.name == "absl"] == []
    assert logging.getLogger("absl").level == level
    assert "".join(capfd.readouterr()) == ""


SAVES_BACK_TO_BACK = """
import itertools, sys
import numpy as np
from maml_jax import checkpoints
for step in itertools.count():
    state = {"w": np.full(1000, float(step)), "step": step}
    checkpoints.save(sys.argv[1], step, state, config={})
    print(step, flush=True)
"""


def test_sigkill_at_random_times_loses_nothing(tmp_path):
    """Oracle: 5 kills; the newest checkpoint is the last one reported, or the next."""
    target, rng, running = {"w": np.zeros(1000), "step": 0}, random.Random(0), {}
    for folder in [tmp_path / str(trial) for trial in range(5)]:
        running[folder] = subprocess.Popen(
            [sys.executable, "-c", SAVES_BACK_TO_BACK, str(folder)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).resolve().parents[1],
            text=True,
        )
    for folder, process in running.items():
        with process:
            reported = int(process.stdout.readline())
            time.sleep(rng.uniform(0.0, 0.3))
            process.kill()
            reported = max([reported, *(int(line) for line in process.stdout)])
        checkpoints.clear_unfinished(folder)
        restored = checkpoints.restore(folder, target)
        assert restored is not None
        assert restored.step in (reported, reported + 1)
        wanted = {"w": np.full(1000, float(restored.step)), "step": restored.step}
        assert_same(restored.state, wanted)
        assert len(list(folder.iterdir())) <= 3


def test_nothing_hangs_at_exit(tmp_path):
    """A process that saves and restores ends by itself, without a line of output."""
    code = (
        "import sys, numpy as np; from maml_jax import checkpoints as c\n"
        "assert 'orbax.checkpoint' not in sys.modules\n"
        "c.save(sys.argv[1], 0, {'w': np.ones(3)}, config={})\n"
        "c.restore(sys.argv[1], {'w': np.ones(3)})\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(tmp_path)],
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
