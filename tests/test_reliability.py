"""The page on reliability: every row is there, its tests exist, its figures are those measured.

python -m pytest tests/test_reliability.py
"""

import json
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [ROOT / "docs" / "reliability.md", ROOT / "experiments" / "reliability" / "README.md"]
RESULTS = ROOT / "experiments" / "reliability" / "results"


def rows():
    """The rows of the tables that say what holds a promise: by the names of the columns."""
    header = None
    for line in PAGES[0].read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            header = None
        elif header is None:
            header = cells
        elif "held by" in header and not line.startswith("| ---"):
            yield dict(zip(header, cells, strict=True))


def test_every_fault_and_every_sameness_has_a_row():
    numbers = [row[""] for row in rows() if row.get("")]
    assert numbers == [*(f"F{n}" for n in range(1, 21)), *(f"D{n}" for n in range(1, 7))]


def test_the_tests_that_hold_a_promise_exist():
    held = [row["held by"] for row in rows()]
    assert len(held) == 20 + 1 + 6 + 10
    for cell in held:
        names = re.findall(r"`([a-z_]+)`", cell)
        assert names or re.match("F1 to F3$", cell)
        for name in names:
            assert (ROOT / "tests" / f"test_{name}.py").is_file(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.parent.name)
def test_links_and_figures(page):
    text = page.read_text()
    for link in re.findall(r"\]\((?!https)([^)#]+)\)", text):
        assert (page.parent / link).exists(), link
    kills, stops, flips = (
        json.loads((RESULTS / f"{name}.json").read_text())
        for name in ("kills", "stops", "bit_flips")
    )
    assert (kills["kills"], kills["lost"], kills["wrong"]) == (200, 0, 0)
    assert (stops["stops"], stops["wrong_codes"], stops["wrong"]) == (40, 0, 0)
    assert (flips["flips"], flips["detected"]) == (200, 200)
    seconds = stops["median_seconds"], stops["longest_seconds"]
    assert f"200 kills, {kills['in_save']} of them in a save: 0 lost, 0 wrong" in text
    assert "after {:.2f} s, at most {:.2f} s".format(*seconds) in text
    assert re.search(r"200 (bit )?flips.*200 (detected|noticed)", text)
    for found in (kills, stops, flips):
        assert {"jax", "python", "cpu_cores"} <= set(found["machine"])
