"""What verdicts share: reading results, and one line of a verdict."""

import re

from records import load


def criterion(claim, found, holds):
    """One line of a verdict; `holds` None where the experiment was not run."""
    return {"claim": claim, "found": found, "holds": None if holds is None else bool(holds)}


def values_of(folder, name):
    """Reads {cell: values} of one results file."""
    return {key: entry["values"] for key, entry in load(folder / f"{name}.json").items()}


def matching(cells, pattern):
    """Gives {groups of the match: values} of the cells whose whole name matches."""
    found = {}
    for name, values in cells.items():
        match = re.fullmatch(pattern, name)
        if match:
            found[match.groups()] = values
    return found
