"""The pictures of the study, from its results.

python experiments/aggregation/plots.py [--folder FOLDER] [--to FOLDER]
"""

import argparse
import pathlib

import plots_glance
import plots_rules
import plots_transfer

from maml_jax.plots._style import save

HERE = pathlib.Path(__file__).resolve().parent
PICTURES = {
    "at_a_glance": plots_glance.at_a_glance,
    "p1_learning_rates": plots_glance.learning_rates,
    "p2_collapse": plots_transfer.collapse,
    "p3_transfer": plots_transfer.transfer_map,
    "p4_divisor": plots_transfer.divisor,
    **plots_rules.PICTURES,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=pathlib.Path, default=HERE / "results")
    parser.add_argument("--to", type=pathlib.Path, default=HERE)
    options = parser.parse_args()
    for path in draw_all(options.folder, options.to):
        print(path)


def draw_all(folder, to):
    """Draws every picture of which the results are there; gives the paths."""
    figures = {name: draw(folder) for name, draw in PICTURES.items()}
    return [
        save(figure, to / f"{name}.png") for name, figure in figures.items() if figure is not None
    ]


if __name__ == "__main__":
    main()
