"""From results to verdicts: each criterion of predictions.md, computed, none by hand.

    python experiments/aggregation/verdicts.py [--folder FOLDER]

writes `verdicts.json`: per hypothesis "supported" (every criterion holds), "refuted" (the first one
does not) or "mixed", with the number behind each criterion.
"""

import argparse
import json
import pathlib

import verdicts_divisor
import verdicts_rules
from records import plain

HERE = pathlib.Path(__file__).resolve().parent


def verdict(criteria):
    """Gives the verdict of criteria in their order; None where nothing was measured."""
    known = [criterion for criterion in criteria if criterion["holds"] is not None]
    if not known:
        return "not run"
    if all(criterion["holds"] for criterion in known):
        return "supported"
    return "mixed" if known[0]["holds"] else "refuted"


def all_verdicts(folder):
    """Computes {hypothesis: {"verdict", "criteria"}} from a folder of results."""
    found = {**verdicts_divisor.criteria(folder), **verdicts_rules.criteria(folder)}
    return {name: {"verdict": verdict(items), "criteria": items} for name, items in found.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=pathlib.Path, default=HERE / "results")
    folder = parser.parse_args().folder
    found = plain(all_verdicts(folder))
    (folder / "verdicts.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    for name, entry in found.items():
        print(f"{name}: {entry['verdict']}")
        for item in entry["criteria"]:
            mark = {True: "+", False: "-", None: "?"}[item["holds"]]
            print(f"  {mark} {item['claim']}: {item['found']}")


if __name__ == "__main__":
    main()
