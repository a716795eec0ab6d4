"""The cache of arrays: whatever happens to its file, the arrays are right."""

import os
import pathlib
import random
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from maml_jax.data._cache import cached_arrays, fingerprint
from maml_jax.data._folders import cache_folder, data_folder, make_folder, private_folder

ARRAYS = {"images": np.arange(6000, dtype=np.uint8).reshape(20, 300), "names": np.array(["a", "b"])}


def make(folder, calls):
    def build():
        calls.append(1)
        return dict(ARRAYS)

    return cached_arrays("set", build, folder)


def check(arrays):
    assert set(arrays) == set(ARRAYS)
    for name, expected in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], expected)


def test_kept_and_read_back(tmp_path):
    calls = []
    check(make(tmp_path / "new", calls))
    check(make(tmp_path / "new", calls))
    assert len(calls) == 1
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["set.npz"]


def cut(data):
    return data[: len(data) // 2]


def flip(data):
    return data[:3000] + bytes([data[3000] ^ 1]) + data[3001:]


def empty(data):
    return b""


def text(data):
    return b"not an archive"


@pytest.mark.parametrize("damage", [cut, flip, empty, text])
def test_damaged_file_is_built_again(tmp_path, damage, caplog):
    calls = []
    make(tmp_path, calls)
    path = tmp_path / "set.npz"
    path.write_bytes(damage(path.read_bytes()))
    check(make(tmp_path, calls))
    assert len(calls) == 2
    assert "is damaged" in caplog.text
    check(make(tmp_path, calls))
    assert len(calls) == 2


def test_100_damaged_files_give_no_wrong_array(tmp_path, monkeypatch):
    """Oracle: the arrays. Bits, half of them where the archive describes itself, and cuts.

    There a bit may say that a member is encrypted, or packed in an unknown way. Flipping each of
    the 12,928 bits of such a file in turn gave no wrong array either.
    """
    monkeypatch.setattr(os, "fsync", lambda file: None)  # Takes most of the time.
    make(tmp_path, [])
    path, rng, calls = tmp_path / "set.npz", random.Random(0), []
    content = path.read_bytes()
    describing = 8 * content.index(b"PK\x01\x02")
    for trial in range(100):
        if trial % 5 == 4:
            damaged = content[: rng.randrange(len(content))]
        else:
            place = rng.randrange(describing if trial % 2 else 0, 8 * len(content))
            damaged = bytearray(content)
            damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        check(make(tmp_path, calls))
    # The others touch what nobody reads, such as the date of a member.
    assert len(calls) > 75


@pytest.mark.parametrize(("field", "value"), [("flag_bits", 1), ("compress_type", 99)])
def test_an_archive_that_says_it_is_encrypted_or_packed_otherwise(tmp_path, caplog, field, value):
    calls = []
    make(tmp_path, calls)
    path = tmp_path / "set.npz"
    content = bytearray(path.read_bytes())
    place = content.index(b"PK\x01\x02") + {"flag_bits": 8, "compress_type": 10}[field]
    content[place] = value
    path.write_bytes(content)
    with zipfile.ZipFile(path) as archive:
        assert getattr(archive.infolist()[0], field) == value
    check(make(tmp_path, calls))
    assert len(calls) == 2
    assert "is damaged" in caplog.text


def test_an_archive_that_unpacks_to_more_than_its_size_is_not_unpacked(tmp_path, caplog):
    """20 MB of zeros in 20 kB."""
    calls = []
    zeros = {"images": np.zeros(2 * 10**7, np.uint8)}
    np.savez_compressed(tmp_path / "set.npz", sha256=np.array("0"), **zeros)
    assert (tmp_path / "set.npz").stat().st_size < 40_000
    check(make(tmp_path, calls))
    assert len(calls) == 1
    assert "would unpack to more than its size" in caplog.text


def test_changed_content_with_a_valid_archive_is_built_again(tmp_path, caplog):
    """A checksum of the archive alone would accept this file."""
    calls = []
    make(tmp_path, calls)
    with np.load(tmp_path / "set.npz") as file:
        arrays = dict(file)
    arrays["images"][3, 7] += 1
    np.savez(tmp_path / "set.npz", **arrays)
    check(make(tmp_path, calls))
    assert len(calls) == 2
    assert re.search(r"SHA-256 does not match: [0-9a-f]{64} was kept, [0-9a-f]{64}", caplog.text)


def test_pickles_are_never_read(tmp_path, caplog):
    np.savez(tmp_path / "set.npz", images=np.array([{"a": 1}], dtype=object), sha256="0")
    calls = []
    check(make(tmp_path, calls))
    assert len(calls) == 1
    assert "allow_pickle" in caplog.text


def test_folder_that_cannot_be_written_is_only_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    calls = []
    check(make(tmp_path / "file" / "folder", calls))
    assert "Not keeping" in caplog.text


def test_failed_write_leaves_no_file(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", refuse)
    check(make(tmp_path, []))
    assert list(tmp_path.iterdir()) == []


KILLED_FIVE_TIMES = """
import os, random, signal, sys, time
import numpy as np
from maml_jax.data._cache import cached_arrays

folder, seed = sys.argv[1], random.Random(0)
path, images = os.path.join(folder, "set.npz"), np.arange(1_000_000, dtype=np.uint32)
build = lambda: {"images": images}
for trial in range(5):
    child = os.fork()
    if child == 0:
        while True:
            if os.path.exists(path):
                os.unlink(path)
            cached_arrays("set", build, folder)
    time.sleep(seed.uniform(0.02, 0.15))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    left = sorted(name.endswith(".tmp") for name in os.listdir(folder))
    again = cached_arrays("set", build, folder)["images"]
    print(left, np.array_equal(again, images))
"""


def test_kill_while_it_is_written_leaves_nothing_that_is_read(tmp_path):
    """Five kills: what is read next is right, and in some of them a half file was there."""
    command = [sys.executable, "-c", KILLED_FIVE_TIMES, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert len(lines) == 5
    assert all(line.endswith("] True") for line in lines)
    assert any("True]" in line for line in lines)


def test_what_killed_processes_left_is_removed_after_an_hour(tmp_path):
    """Another's file that is being written, and that of another name, stay."""
    names = ["setA.tmp", "setB.tmp", "other.tmp"]
    for name in names:
        (tmp_path / name).write_bytes(b"half")
    for name in ("setA.tmp", "other.tmp"):
        os.utime(tmp_path / name, (0, 0))
    make(tmp_path, [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.tmp", "set.npz", "setB.tmp"]


def test_folders_are_for_this_user_alone(tmp_path):
    """Whatever the mask says; one that is there stays as it is."""
    before = os.umask(0)
    try:
        make(tmp_path / "a" / "b", [])
    finally:
        os.umask(before)
    for path in (tmp_path / "a", tmp_path / "a" / "b"):
        assert path.stat().st_mode & 0o777 == 0o700
    assert make_folder(tmp_path) == tmp_path


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
def test_a_folder_of_programs_that_others_can_write_is_refused(tmp_path, mode):
    folder = tmp_path / "my cache"
    assert private_folder(folder) == folder
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(mode)
    with pytest.raises(PermissionError, match=f"others can write.*run: chmod go-w '{folder}'"):
        private_folder(folder)
    folder.chmod(0o755)
    assert private_folder(folder) == folder


def test_a_folder_of_programs_of_another_user_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(PermissionError, match="belongs to another user"):
        private_folder(tmp_path)


def test_fingerprint_depends_on_every_part():
    assert (
        len({fingerprint(1, "a"), fingerprint(1, "b"), fingerprint(2, "a"), fingerprint("1a")}) == 4
    )
    assert fingerprint(1, "a") == fingerprint(1, "a")


def test_folders_come_from_argument_then_environment_then_home(monkeypatch):
    home = pathlib.Path.home()
    for name in ("MAML_JAX_DATA_DIR", "TFDS_DATA_DIR", "MAML_JAX_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert data_folder() == home / "tensorflow_datasets"
    assert cache_folder() == home / ".cache" / "maml_jax"
    monkeypatch.setenv("TFDS_DATA_DIR", "/somewhere")
    assert data_folder() == pathlib.Path("/somewhere")
    monkeypatch.setenv("MAML_JAX_DATA_DIR", "/elsewhere")
    monkeypatch.setenv("MAML_JAX_CACHE_DIR", "/kept")
    assert data_folder() == pathlib.Path("/elsewhere")
    assert data_folder("~/mine") == home / "mine"
    assert cache_folder() == pathlib.Path("/kept")


def test_import_is_light():
    """Importing maml_jax.data imports none of the libraries that only readers need."""
    program = (
        "import sys\n"
        "import maml_jax.data\n"
        "heavy = {'tensorflow_datasets', 'matplotlib', 'PIL', 'array_record', 'tensorflow'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    root = pathlib.Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
