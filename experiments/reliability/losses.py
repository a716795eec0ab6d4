"""Kills one of two training processes, or stops one, again and again, and times the other one.

    python experiments/reliability/losses.py [--rounds 6] [--seed 0] [--output FILE]

A round kills process 0, then process 1, then sends SIGTERM to either. After a loss the other one
must leave by itself, after a SIGTERM both must; the run that is resumed after every event must end
as one that nothing disturbed. Seconds are from the signal to the end of the last process. Two
devices each, on loopback; about a minute a round.
"""

import collections
import random
import signal
import statistics
import time

from common import asked, workplace, write
from test_distributed import PATIENCE, RUN, STEPS, pairs, when_at

from children import fingerprints, finish, last_logged_step, rows

EVENTS = ("lost 0", "lost 1", "stopped")
STEPS_A_ROUND = 240  # An event comes after at most 70 steps.


def disturb(event, pair, rng, run_dir):
    """Waits for a random moment, does it; returns the codes of those who left and the seconds."""
    when_at(last_logged_step(run_dir) + rng.randrange(10, 50), run_dir, pair[0])
    began = time.monotonic()
    if event == "stopped":
        pair[rng.randrange(2)].send_signal(signal.SIGTERM)
        left = pair
    else:
        number = int(event[-1])
        pair[number].kill()
        left = [pair[1 - number]]
    codes = [finish(child)[0] for child in left]
    seconds = time.monotonic() - began
    for child in pair:
        if child not in left:
            finish(child)
    return codes, seconds


def main(arguments=None):
    options = asked(__file__, __doc__, arguments, rounds=6)
    began, rng = time.monotonic(), random.Random(options.seed)
    seconds, codes = collections.defaultdict(list), collections.Counter()
    steps = str(STEPS_A_ROUND * options.rounds)
    command = [steps if word == str(STEPS) else word for word in RUN]
    with workplace() as (folder, environment), pairs(environment) as begin:
        whole, run_dir = folder / "whole", folder / "disturbed"
        assert [finish(child)[0] for child in begin(*command, "--run-dir", whole)] == [0, 0]
        words = [*command, "--run-dir", run_dir]
        for number in range(len(EVENTS) * options.rounds):
            event = EVENTS[number % len(EVENTS)]
            ends, took = disturb(event, begin(*words), rng, run_dir)
            seconds[event.split()[0]].append(round(took, 3))
            codes.update(f"{event}: {code}" for code in ends)
            words = ["resume", run_dir]
            print(f"{event}: {ends} after {took:.2f} s", flush=True)
        assert [finish(child)[0] for child in begin(*words)] == [0, 0]
        wrong = (fingerprints(run_dir), rows(run_dir)) != (fingerprints(whole), rows(whole))
    times = {
        event: {"count": len(s), "median_seconds": statistics.median(s), "longest_seconds": max(s)}
        for event, s in seconds.items()
    }
    write(options.output, began, exit_codes=codes, wrong=int(wrong), seed=options.seed, **times)
    late = max(times["lost"]["longest_seconds"], times["stopped"]["longest_seconds"]) > PATIENCE
    return int(wrong or late)


if __name__ == "__main__":
    raise SystemExit(main())
