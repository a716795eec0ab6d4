"""Stops a training run often, by SIGTERM and Ctrl-C in turn, and times how soon it is gone.

    python experiments/reliability/stops.py [--stops 40] [--seed 0] [--output FILE]

Each stop must end the process with its exit code and a state that is saved; the run that is
resumed after every stop must end as one that nothing disturbed. Seconds are from the signal to the
end of the process.
"""

import random
import signal
import statistics
import time

from common import asked, workplace, write

from children import fingerprints, finish, last_logged_step, rows, start, wait_until
from test_kill import RUN, undisturbed

CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}
AT_A_TIME = 10


def stop_once(words, number, run_dir, environment, rng):
    """Stops at any moment of a call; returns the exit code and the seconds it took."""
    child, calls = start(words, environment), rng.randrange(1, 5)
    first = last_logged_step(run_dir)
    wait_until(lambda: last_logged_step(run_dir) >= first + 10 * calls, child)
    time.sleep(rng.uniform(0.0, 0.03))
    began = time.monotonic()
    child.send_signal(number)
    code = finish(child)[0]
    return code, time.monotonic() - began


def main(arguments=None):
    options = asked(__file__, __doc__, arguments, stops=40)
    began, rng, seconds, codes, wrong, runs = (
        time.monotonic(),
        random.Random(options.seed),
        [],
        0,
        0,
        0,
    )
    with workplace() as (folder, environment):
        whole = undisturbed(folder, environment)
        while len(seconds) < options.stops:
            run_dir = folder / f"stopped-{runs}"
            words = [*RUN, "--run-dir", run_dir]
            for _ in range(min(AT_A_TIME, options.stops - len(seconds))):
                number = list(CODES)[len(seconds) % 2]
                code, took = stop_once(words, number, run_dir, environment, rng)
                codes += code != CODES[number]
                seconds.append(round(took, 3))
                words = ["resume", run_dir]
            assert finish(start(words, environment))[0] == 0
            wrong += (fingerprints(run_dir), rows(run_dir)) != (fingerprints(whole), rows(whole))
            runs += 1
            print(f"{len(seconds)} of {options.stops}: {codes} wrong codes, {wrong} wrong ends")
    median, longest = statistics.median(seconds), max(seconds)
    results = {"stops": len(seconds), "wrong_codes": codes, "wrong": wrong, "runs": runs}
    results |= {"median_seconds": median, "longest_seconds": longest, "seed": options.seed}
    write(options.output, began, **results)
    print(
        f"{len(seconds)} stops, {codes} wrong exit codes, {wrong} wrong ends; gone after "
        f"{median:.2f} s, at most {longest:.2f} s"
    )
    return int(codes + wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
