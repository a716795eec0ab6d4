"""What is told of the CPU: from the files of Linux, and where there are none."""

import platform

import pytest

from maml_jax import host

X86 = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu {}\n\nprocessor\t: 1\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd\nCPU part\t: 0xd0c\n"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (X86.format("avx avx2 avx512f"), "Some CPU, AVX-512"),
        (X86.format("avx avx2"), "Some CPU, AVX2"),
        (X86.format("sse"), "Some CPU"),
        (ARM, f"{platform.machine()}, NEON"),
    ],
    ids=["avx512", "avx2", "neither", "arm"],
)
def test_a_cpu_has_a_name_and_the_widest_of_its_vectors(text, name, monkeypatch, tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    monkeypatch.setattr(host, "_CPU", path)
    assert host.cpu_name() == name


def test_elsewhere_the_name_is_what_python_knows(monkeypatch, tmp_path):
    monkeypatch.setattr(host, "_CPU", tmp_path / "none")
    assert host.cpu_name() == (platform.processor() or platform.machine())


@pytest.mark.parametrize(
    ("text", "size"), [("512K\n", 2**19), ("1280K\n", 1280 * 1024), ("2M\n", None), ("", None)]
)
def test_a_core_has_a_cache_of_its_own(text, size, monkeypatch, tmp_path):
    path = tmp_path / "size"
    path.write_text(text)
    monkeypatch.setattr(host, "_CACHE", path)
    assert host.core_cache_bytes.__wrapped__() == size


def test_elsewhere_no_cache_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(host, "_CACHE", tmp_path / "none")
    assert host.core_cache_bytes.__wrapped__() is None
