"""What every benchmark does with its numbers: a table on the terminal, a JSON file."""

import json
import pathlib
import sys

from rich.console import Console
from rich.table import Table

from maml_jax.benchmarking import machine


def show(title, rows, columns):
    """Prints a table of strings; the first column is a name, the others are numbers."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def write(path, content):
    """Writes results with the facts of the machine, for people and for `report.py`."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": machine(), **content}, indent=1, default=str)
    path.write_text(text + "\n")
