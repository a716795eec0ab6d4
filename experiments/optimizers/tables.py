"""Writes the tables of README.md between its markers, from result.json."""

START, END = "<!-- tables: written by run.py -->", "<!-- end of tables -->"
TITLES = {
    "1": "Degree 1: the sum at η/32 is the mean at η",
    "0": "Degree 0: the divisor does nothing",
    "mixed": "Mixed",
}


def write(result, path):
    """Puts the tables into a README that has the markers, or makes one of them alone."""
    text = path.read_text() if path.exists() else f"{START}\n{END}\n"
    before, rest = text.split(START)
    after = rest.split(END)[1]
    path.write_text(f"{before}{START}\n\n{tables(result)}\n{END}{after}")


def tables(result):
    """Formats three tables, one per degree, the pieces in one line each, and what is left out."""
    parts = []
    for degree, title in TITLES.items():
        rows = [r for r in result["optimizers"] if r["degree"] == degree and r["kind"] != "piece"]
        pieces = [r for r in result["optimizers"] if r["degree"] == degree and r["kind"] == "piece"]
        parts.append(f"### {title} ({len(rows)})\n\n{table(rows, with_settings=degree == 'mixed')}")
        parts.append("Pieces: " + ", ".join(f"`{r['name']}`" for r in pieces) + ".")
    left = "; ".join(f"`{name}` ({why})" for name, why in result["left_out"].items())
    parts.append(f"### Left out ({len(result['left_out'])})\n\n{left}.")
    return "\n\n".join(parts) + "\n"


def table(rows, *, with_settings):
    """Formats rows of one degree."""
    columns = ["optimizer", "p, ‖g‖ = 1", "p, 1e-6", "effect"]
    columns += (["from mean to sum"] if with_settings else []) + ["why, where"]
    lines = ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    for row in rows:
        cells = [row["name"], number(row["exponents"]["1"]), number(row["exponents"]["1e-06"])]
        cells.append(f"{row['effect']:.0e}" if row["effect"] else "0")
        if with_settings:
            factors = [f"{name} × {factor:.4g}" for name, factor in row["settings"].items()]
            cells.append(", ".join(factors) or "no setting")
        cells.append(" ".join(short(reason) for reason in row["reasons"]))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def number(p):
    """Writes an exponent, without a sign for what rounds to zero."""
    return f"{p + 0.0:.2f}".replace("-0.00", "0.00")


def short(reason):
    """Leaves out the second half of a sentence, which the columns before it say."""
    for mark in ("; under the sum", ": under the sum", ": against the sum", ": the divisor"):
        reason = reason.split(mark)[0]
    reason = reason.replace("takes over where the entries of the gradient are below about", "below")
    return reason if reason.endswith(".") else reason + "."
