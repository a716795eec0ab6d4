"""Makes the Colab notebook from its source, and the line for the README that opens it.

    python cloud/make_notebook.py [--check]

The source is `colab.py`, a script whose cells begin with `# %%`: the py:percent format, which
editors run cell by cell and jupytext reads. `colab.ipynb` is written beside it, without outputs,
the same bytes every time; `--check` writes nothing and says whether it is up to date.

If pyproject.toml names the repository under `[project.urls]`, the notebook installs from there and
the badge opens it from there. As long as it does not, the notebook asks, and the badge opens Colab.
"""

import argparse
import json
import pathlib
import re
import sys
import tomllib

HERE = pathlib.Path(__file__).resolve().parent
SOURCE, NOTEBOOK, PROJECT = HERE / "colab.py", HERE / "colab.ipynb", HERE.parent / "pyproject.toml"

# What Colab writes for a runtime with one TPU v5e chip, which it then offers.
METADATA = {
    "accelerator": "TPU",
    "colab": {"gpuType": "V5E1", "provenance": [], "toc_visible": True},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}

_BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
_COLAB = "https://colab.research.google.com/"
_NO_REPOSITORY = 'REPOSITORY = ""'


def cells(source: str) -> list[dict]:
    """Splits a py:percent script into cells of nbformat 4.5, with ids that say which is which."""
    begin, *parts = re.split(r"^# %%(.*)\n", source, flags=re.MULTILINE)
    if begin.strip():
        raise ValueError(f"a cell must begin with '# %%', got {begin.splitlines()[0]!r} first.")
    found = []
    for number, (title, body) in enumerate(zip(parts[::2], parts[1::2], strict=True)):
        is_text = title.strip() == "[markdown]"
        if title.strip() and not is_text:
            raise ValueError(f"a cell is '# %%' or '# %% [markdown]', got '# %%{title}'.")
        lines = body.strip("\n").splitlines()
        if is_text:
            lines = [re.sub(r"^# ?", "", line) for line in lines]
        kind = "markdown" if is_text else "code"
        cell = {"cell_type": kind, "id": f"{kind}-{number:02d}", "metadata": {}}
        if not is_text:
            cell |= {"execution_count": None, "outputs": []}
        text = "\n".join(lines)
        found.append({**cell, "source": text.splitlines(keepends=True)})
    return found


def notebook(source: str, repository: str | None = None) -> str:
    """Gives the text of the notebook; with a repository, it installs from there."""
    if repository is not None:
        source = source.replace(_NO_REPOSITORY, f'REPOSITORY = "{repository}"')
    content = {
        "cells": cells(source),
        "metadata": METADATA,
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def badge(repository: str | None = None) -> str:
    """Gives the line for the README; Colab opens notebooks of GitHub repositories by address."""
    found = re.fullmatch(r"https://github\.com/([^/]+/[^/]+?)(\.git)?/?", repository or "")
    if found is None:
        return f"{_BADGE}({_COLAB}) and upload `cloud/colab.ipynb`."
    return f"{_BADGE}({_COLAB}github/{found[1]}/blob/main/cloud/colab.ipynb)"


def repository() -> str | None:
    """Reads the address of the repository from pyproject.toml, if it is there."""
    project = tomllib.loads(PROJECT.read_text())["project"]
    return project.get("urls", {}).get("Repository")


def main() -> None:
    """Writes the notebook, or checks it, and prints the badge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if it differs")
    options = parser.parse_args()
    text = notebook(SOURCE.read_text(), repository())
    if options.check:
        if not NOTEBOOK.exists() or NOTEBOOK.read_text() != text:
            sys.exit(f"error: {NOTEBOOK} is not made from {SOURCE}: run python {sys.argv[0]}")
        return
    NOTEBOOK.write_text(text)
    print(f"{NOTEBOOK}; for the README:\n{badge(repository())}")


if __name__ == "__main__":
    main()
