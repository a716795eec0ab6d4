"""Kills a training run often, at random moments, and counts what is lost or wrong.

    python experiments/reliability/kills.py [--kills 200] [--seed 0] [--output FILE]

Half of the kills come while a checkpoint is written, a quarter at any moment of a call, a quarter
at any time since the start of the process. After each one the newest checkpoint must be there and
be, leaf by leaf, that of a run that nothing disturbed; after each twelfth the run goes on to its
end, and so must its end and its log. The tools are those of `tests/test_kill.py`. About 5 s a kill.
"""

import dataclasses
import random
import time

from common import asked, workplace, write

from test_kill import Tally, disturb, undisturbed

AT_A_TIME = 12


def count(kills, seed, folder, environment):
    """Kills so often, in runs one after the other; returns the tally and the number of runs."""
    rng, tally, runs = random.Random(seed), Tally(), 0
    whole = undisturbed(folder, environment)
    while tally.kills < kills:
        few = min(AT_A_TIME, kills - tally.kills)
        run_dir = folder / f"killed-{runs}"
        disturb(run_dir, whole, environment, kills=few, rng=rng, tally=tally)
        runs += 1
        print(f"{tally.kills} of {kills}: {tally}", flush=True)
    return tally, runs


def main(arguments=None):
    options = asked(__file__, __doc__, arguments, kills=200)
    began = time.monotonic()
    with workplace() as (folder, environment):
        tally, runs = count(options.kills, options.seed, folder, environment)
    write(options.output, began, **dataclasses.asdict(tally), runs=runs, seed=options.seed)
    print(
        f"{tally.kills} kills, {tally.in_save} of them in a save, {tally.lost} lost, "
        f"{tally.wrong} wrong"
    )
    return int(tally.lost + tally.wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
