"""The tables of `scaling.py`: what was counted, and what the model makes of it."""

import dataclasses

import report_table
import scaling_model as paper

LEVELS = ("STATIC", "LOSS", "NORMS", "GRAM", "FULL")


def model(works):
    """Works the paper model out, for every slice of the kind of chip; gives plain values."""
    steps, enough, strong, rules = [], [], [], []
    for work in works:
        case = {"workload": work.name, "bound": work.bound}
        for chips in paper.SLICES.values():
            if chips.kind != work.kind:
                continue
            on = {**case, "slice": chips.name}
            for n in paper.TASKS_PER_CHIP:
                times = paper.step_seconds(work, n, chips) | paper.efficiencies(work, n, chips)
                steps.append({**on, "per_chip": n, **times})
            for hop in (paper.HOP_SECONDS, paper.SLOW_HOP_SECONDS):
                tasks = paper.tasks_for_share(work, chips, hop_seconds=hop)
                enough.append({**on, "hop_seconds": hop, "tasks_per_chip": tasks})
            for level in LEVELS:
                seconds = paper.exchange_seconds(level, work, chips.num_chips, chips)
                rules.append({**on, "level": level, "seconds": seconds})
        for chips in paper.GROWING:
            if chips.kind == work.kind:
                each = paper.STRONG_TASKS / chips.num_chips
                shared = {"chips": chips.num_chips, "per_chip": each}
                strong.append({**case, **shared, **paper.efficiencies(work, each, chips)})
    return {
        "is": "a model, not a measurement",
        "works": [dataclasses.asdict(work) for work in works],
        "steps": steps,
        "enough": enough,
        "strong": strong,
        "rules": rules,
    }


def show(content):
    """Prints every table."""
    for title, columns, rows in tables(content):
        report_table.show(title, rows, columns)


def tables(content):
    """Gives every table that there is: its title, its columns, its rows as strings."""
    made = [grown(content["results"])] if content.get("results") else []
    made += [exchanged(content["rules"])] if content.get("rules") else []
    if "model" in content:
        made += [table(content["model"]) for table in (stepped, spread, shared, by_rule)]
    return made


def grown(results):
    """Work, exchange and time of a device against the number of devices."""
    columns = ("", "devices", "tasks", "GFLOP", "of one's", "MB", "of one's")
    columns += ("exchanges", "kB", "compile, s", "ms here")
    rows = []
    for row in results:
        one = next(
            other
            for other in results
            if (other["workload"], other["scaling"]) == (row["workload"], row["scaling"])
        )
        kinds = row["exchanges"]
        rows.append(
            (
                f"{row['workload']} {row['scaling']}",
                str(row["devices"]),
                str(row["num_tasks"]),
                f"{row['flops'] / 1e9:.4g}",
                f"{row['flops'] / one['flops']:.4f}",
                f"{row['num_bytes'] / 1e6:.4g}",
                f"{row['num_bytes'] / one['num_bytes']:.4f}",
                ", ".join(f"{kind['count']} {name}" for name, kind in kinds.items()) or "none",
                f"{sum(kind['bytes'] for kind in kinds.values()) / 1e3:.4g}",
                f"{row['compile_seconds']:.1f}",
                f"{1e3 * row['seconds']:.3g}",
            )
        )
    return "of each device, one outer step", columns, rows


def exchanged(rules):
    """What a rule of each level exchanges."""
    columns = ("", "devices", "GFLOP", "exchanges", "kB of results", "kB sent", "kB among")
    rows = []
    for row in rules:
        kinds = row["exchanges"].items()
        among = row["sent_bytes_among"].items()
        rows.append(
            (
                f"{row['rule']} ({row['level']})",
                row["devices"],
                f"{row['flops'] / 1e9:.4g}",
                ", ".join(f"{kind['count']} {name}" for name, kind in kinds),
                ", ".join(f"{kind['bytes'] / 1e3:.4g}" for _, kind in kinds),
                f"{row['sent_bytes'] / 1e3:.4g}",
                ", ".join(f"{count}: {num_bytes / 1e3:.4g}" for count, num_bytes in among),
            )
        )
    first = rules[0]
    return f"exchanges, {first['workload']}, {first['num_tasks']} tasks", columns, rows


def stepped(made):
    """The model's steps, one line a workload, bound and slice."""
    columns = ("", "slice", "ms, one task a chip", "µs of it exchange")
    columns += tuple(f"of {n}" for n in paper.TASKS_PER_CHIP)
    lines = {}
    for row in made["steps"]:
        key = f"{row['workload']} {row['bound']}", row["slice"]
        first = (f"{1e3 * row['step']:.3g}", f"{1e6 * row['exchange']:.1f}")
        lines.setdefault(key, [*key, *first]).append(f"{row['share']:.1%}")
    title = "exchange's part of a step, by tasks a chip: a model, not a measurement"
    return title, columns, list(lines.values())


def shared(made):
    """The model's strong scaling, one line a workload and bound."""
    chips = [str(row["chips"]) for row in made["strong"]]
    lines = {}
    for row in made["strong"]:
        lines.setdefault(f"{row['workload']} {row['bound']}", []).append(f"{row['strong']:.1%}")
    rows = [(key, *cells) for key, cells in lines.items()]
    title = (
        f"efficiency of v5e chips sharing {paper.STRONG_TASKS} tasks: a model, not a measurement"
    )
    return title, ("", *dict.fromkeys(chips)), rows


def by_rule(made):
    """The model's exchange of a rule of each level, with one task a chip."""
    lines = {}
    for row in made["rules"]:
        key = row["workload"], row["slice"]
        if row["bound"] == "float32":  # The others exchange as much.
            lines.setdefault(key, []).append(f"{1e6 * row['seconds']:.3g}")
    rows = [(*key, *cells) for key, cells in lines.items()]
    title = "µs of a rule's exchanges, one task a chip: a model, not a measurement"
    return title, ("", "slice", *LEVELS), rows


def spread(made):
    """From how many tasks a chip on the exchange is at most a given part of a step."""
    hops = dict.fromkeys(f"{1e6 * row['hop_seconds']:.1f} µs a hop" for row in made["enough"])
    lines = {}
    for row in made["enough"]:
        key = f"{row['workload']} {row['bound']}", row["slice"]
        tasks = row["tasks_per_chip"]
        lines.setdefault(key, [*key]).append("below 1" if tasks < 1 else f"{tasks:.3g}")
    title = f"tasks a chip, exchange {paper.SHARE:.0%} of a step: a model, not a measurement"
    return title, ("", "slice", *hops), list(lines.values())
