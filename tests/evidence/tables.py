"""``make evidence-tables``: draws every table and figure of the evidence from the ledger.

It writes CSV and SVG files beside the ledger, and replaces the parts of docs/EVIDENCE.md between a comment ``ledger: NAME`` and the
comment ``end``. Unfinished trainings are not in the numbers, but are listed.
"""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, quantiles, stdev
from typing import TYPE_CHECKING, Any

from growtas.files import read_json, replacing
from tests.evidence.ledger import FOLDER, LEDGER, REPOSITORY, SUBNETS, Line, missing, read_ledger
from tests.evidence.plan import PLAN, RATE, Training

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAGE = REPOSITORY / "docs" / "EVIDENCE.md"
COLUMNS = ("smallest", "width 32", "width 48", "width 64", "largest")
"""Columns of accuracies: that of a probe, or the mean of the four probes of a width."""
GROUPS = {"steps": "equal steps", "compute": "equal compute"}
T_QUANTILES = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}
"""97.5 % quantiles of Student's t by the number of seeds."""
_CUT_POINTS = 4.0
"""Percentage points below the lowest accuracy of ``uniform`` at which the figure of limits is cut."""
_TABLE_LIMITS = (80_000, 150_000, 260_000)


class Evidence:
    """The ledger lines of a plan's trainings.

    Args:
        plan: the trainings, in order.
        lines: the ledger; lines of other trainings are only counted.
    """

    def __init__(self, plan: Sequence[Training], lines: Mapping[str, Line]) -> None:
        self.plan, self._lines = plan, lines
        self.missing = missing(plan, lines)
        self.others = len(lines.keys() - {training.key for training in plan})
        self.uniform = {line["seed"]: line for line in self.rows("steps").get("uniform", [])}

    def rows(self, group: str) -> dict[str, list[Line]]:
        """The finished lines of each name in a group, in the plan's order; ``uniform`` is in both groups of methods."""
        found: dict[str, list[Line]] = {}
        for training in self.plan:
            if training.group == group or (training.name == "uniform" and group in GROUPS):
                lines = found.setdefault(training.name, [])
                if training.key in self._lines:
                    lines.append(self._lines[training.key])
        return {name: lines for name, lines in found.items() if lines}

    def macs(self, line: Line) -> float | None:
        """Multiply-accumulates of a training plus those of its base training; None where the base is not in the ledger."""
        own = float(line["macs"] + line["extra_macs"])
        if line["starts_from"] is None:
            return own
        base = self._lines.get(line["starts_from"])
        return own + first if base and (first := self.macs(base)) else None

    def compute(self, line: Line) -> float | None:
        """The same, relative to ``uniform`` with the same seed; None where one of them is not known."""
        uniform, spent = self.uniform.get(line["seed"]), self.macs(line)
        return spent / base if uniform and spent and (base := self.macs(uniform)) else None

    def differences(self, lines: Iterable[Line], column: str) -> list[float]:
        """Test accuracy in a column minus that of ``uniform`` with the same seed, of every seed that has both."""
        pairs = [(line, self.uniform[line["seed"]]) for line in lines if line["seed"] in self.uniform]
        return [accuracy(line, column) - accuracy(uniform, column) for line, uniform in pairs]


def accuracy(line: Line, column: str, images: str = "test") -> float:
    """The accuracy of a line in one of COLUMNS, 0 to 1."""
    return fmean(values[images] for name, values in line["probes"].items() if name == column or name.startswith(f"{column}, "))


def under(line: Line, limit: int) -> float | None:
    """The test accuracy of the subnet found under a parameter limit; None if it was not measured."""
    return next((found["test"] for found in line["searched"] if found["max_params"] == limit), None)


def percent(values: Sequence[float], *, signed: bool = False) -> str:
    """The mean of accuracies in percent, with their standard deviation if there are several."""
    if not values:
        return "-"
    mean = f"{100 * fmean(values):+.2f}" if signed else f"{100 * fmean(values):.2f}"
    return f"{mean} ± {100 * stdev(values):.2f}" if len(values) > 1 else mean


def number(values: Iterable[float | None]) -> str:
    """The mean of the known values."""
    known = [value for value in values if value is not None]
    return f"{fmean(known):.2f}" if known else "-"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is text."""
    body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(header)} |", "| --- |" + " ---: |" * (len(header) - 1), *body])


def status(evidence: Evidence) -> str:
    """Which trainings are finished, and which are missing."""
    done, total = len(evidence.plan) - len(evidence.missing), len(evidence.plan)
    text = f"{done} of the plan's {total} trainings are finished."
    if evidence.missing:
        names: dict[str, list[int]] = {}
        for training in evidence.missing:
            where = f" ({GROUPS[training.group]})" if training.group in GROUPS else ""
            names.setdefault(training.name + where, []).append(training.seed)
        text += " Missing: " + "; ".join(f"{name}, seed {', '.join(map(str, seeds))}" for name, seeds in names.items()) + "."
    if evidence.others:
        lines = (
            "1 line of the ledger is a training" if evidence.others == 1 else f"{evidence.others} lines of the ledger are trainings"
        )
        text += f" {lines} with other settings, which the tables leave out."
    return text


def methods(evidence: Evidence) -> str:
    """The table of methods: equal steps and equal compute side by side."""
    short = ("smallest", "probes", "largest")

    def cells(lines: Sequence[Line]) -> list[str]:
        if not lines:
            return ["-"] * 5
        middle = [fmean(accuracy(line, column) for column in COLUMNS[1:-1]) for line in lines]
        ends = [percent([accuracy(line, column) for line in lines]) for column in ("smallest", "largest")]
        epochs = lines[0]["epochs"] + _first_epochs(evidence, lines[0])
        return [str(epochs), ends[0], percent(middle), ends[1], number(evidence.compute(line) for line in lines)]

    steps, compute = (evidence.rows(group) for group in GROUPS)
    header = ["method", "seeds"]
    for title in GROUPS.values():
        header += [f"{title}: epochs", *short, "compute"]
    rows = []
    for name in dict.fromkeys([*steps, *compute]):
        lines = steps.get(name, []), compute.get(name, [])
        rows.append([name, "/".join(str(len(part)) for part in lines), *cells(lines[0]), *cells(lines[1])])
    return markdown(header, rows)


def _first_epochs(evidence: Evidence, line: Line) -> int:
    """The epochs of the training from which a line's training continued."""
    start = next((training.starts_from for training in evidence.plan if training.key == line["key"]), None)
    return start.epochs if start else 0


def against_uniform(evidence: Evidence) -> str:
    """The table of differences to ``uniform``, seed by seed."""
    rows = []
    for group, title in GROUPS.items():
        for name, lines in evidence.rows(group).items():
            if name != "uniform" and (seeds := len(evidence.differences(lines, "smallest"))):
                differences = [percent(evidence.differences(lines, column), signed=True) for column in COLUMNS]
                rows.append([f"{name} ({title})", str(seeds), *differences, number(evidence.compute(line) for line in lines)])
    return markdown(["minus uniform, in points", "seeds", *COLUMNS, "compute"], rows)


def claims(evidence: Evidence) -> str:
    """One sentence per method about its differences, made by a fixed rule."""
    sentences = []
    for group, title in GROUPS.items():
        for name, lines in evidence.rows(group).items():
            found = {column: evidence.differences(lines, column) for column in COLUMNS}
            seeds = len(found["smallest"])
            if name == "uniform" or not seeds:
                continue
            if seeds == 1:
                sentences.append(f"{name} ({title}) has one seed, and one seed cannot show a difference.")
                continue
            ahead = [column for column, values in found.items() if _margin(values) < fmean(values)]
            behind = [column for column, values in found.items() if fmean(values) < -_margin(values)]
            parts = [f"{word} at {_listed(columns)}" for word, columns in (("ahead", ahead), ("behind", behind)) if columns]
            if len(ahead) + len(behind) < len(COLUMNS):
                parts.append(f"the seeds show no {'other ' if parts else ''}difference")
            sentences.append(f"{name} ({title}, {seeds} seeds): {'; '.join(parts)}.")
    return "\n".join(f"- {sentence}" for sentence in sentences) or "No method can be compared with uniform yet."


def _margin(values: Sequence[float]) -> float:
    """Half of the 95 % confidence interval of the mean."""
    return T_QUANTILES.get(len(values), 2.26) * stdev(values) / len(values) ** 0.5


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def sweep(evidence: Evidence) -> list[tuple[str, list[Line]]]:
    """The rows of the paper's Table 4: ``uniform``, the transitions in order, and GrowTAS+."""
    rows = evidence.rows("steps")
    order = ["uniform", *sorted(name for name in rows if name.startswith("growtas, T_1 at"))]
    order += [name for name in rows if name not in order]
    return [(name, rows[name]) for name in order if name in rows]


def transition_table(evidence: Evidence) -> str:
    """Table 4: test accuracy of the searched subnet under three limits, for each transition."""
    header = ["method", "seeds", "T_1, epochs", *(f"{limit // 1000} K" for limit in _TABLE_LIMITS)]
    return markdown(header, [[name, str(len(lines)), _chosen(lines), *_under_limits(lines)] for name, lines in sweep(evidence)])


def _under_limits(lines: Sequence[Line]) -> list[str]:
    found = [[under(line, limit) for line in lines] for limit in _TABLE_LIMITS]
    return [percent([value for value in values if value is not None]) for values in found]


def _chosen(lines: Sequence[Line]) -> str:
    """The transitions of some lines."""
    epochs = [f"{epoch:g}" for line in lines for epoch in line["transitions"]["epochs"][:1]]
    return ", ".join(dict.fromkeys(epochs)) or "-"


def band_table(evidence: Evidence) -> str:
    """Fig. 6 in numbers: the accuracies of the random subnets in the band, averaged over seeds."""
    rows = []
    for group, title in GROUPS.items():
        for name, lines in evidence.rows(group).items():
            bands = [line["band"] for line in lines if line["band"]]
            if bands and (name != "uniform" or group == "steps"):
                spreads = [[min(band), *quantiles(band, n=4), max(band)] for band in bands]
                rows.append([f"{name} ({title})", str(len(bands)), *(percent(values) for values in zip(*spreads, strict=True))])
    return markdown(["200 subnets", "seeds", "lowest", "25 %", "median", "75 %", "highest"], rows)


def rate_table(evidence: Evidence) -> str:
    """The trials of learning rates, on the search split."""
    rows = []
    for lines in evidence.rows("rate").values():
        mean = fmean(values["search"] for line in lines for values in line["probes"].values())
        rate, name = lines[0]["options"]["lr"], lines[0]["name"].partition(", rate")[0]
        mark = " (used)" if rate == RATE else ""
        accuracies = (percent([accuracy(line, c, "search") for line in lines]) for c in COLUMNS)
        rows.append([name, f"{rate:g}{mark}", *accuracies, f"{100 * mean:.2f}"])
    return markdown(["method", "rate", *COLUMNS, "mean of the 14 probes"], rows)


def machine(evidence: Evidence) -> str:
    """The machines and the durations of the trainings."""
    lines = [line for group in ("rate", *GROUPS) for found in evidence.rows(group).values() for line in found]
    if not lines:
        return "No training is finished yet."
    where = sorted({f"{line['cpu']}, threads: {line['threads']}, torch {line['versions']['torch']}" for line in lines})
    minutes = [line["seconds"] / 60 for line in lines]
    return (
        f"Trained on {'; '.join(where)}. A training took {min(minutes):.0f} to {max(minutes):.0f} minutes at the lowest priority."
    )


PARTS: Mapping[str, Callable[[Evidence], str]] = {
    "status": status,
    "machine": machine,
    "rates": rate_table,
    "methods": methods,
    "differences": against_uniform,
    "claims": claims,
    "transitions": transition_table,
    "band": band_table,
}
"""The generated parts of docs/EVIDENCE.md."""


def fill(page: str, evidence: Evidence) -> str:
    """Returns a page with its generated parts replaced."""
    return replace_parts(page, "ledger", lambda name: PARTS[name](evidence))


def replace_parts(page: str, marker: str, text: Callable[[str], str]) -> str:
    """A page in which new text stands between each comment ``MARKER: NAME`` and the comment ``end`` after it.

    Args:
        text: gives the text of a name.
    """

    def part(match: re.Match[str]) -> str:
        return f"{match[1]}\n{text(match[2])}\n{match[3]}"

    return re.sub(rf"(<!-- {marker}: (\w+) -->).*?(<!-- end -->)", part, page, flags=re.DOTALL)


def probe_rows(evidence: Evidence) -> list[dict[str, Any]]:
    """One row per finished training and probe."""
    params = {name: entry["params"] for name, entry in read_json(SUBNETS)["probes"].items()}
    return [
        {
            **_head(evidence, group, name, line),
            "probe": probe,
            "params": params[probe],
            "search": found["search"],
            "test": found["test"],
        }
        for group, name, line in _all_lines(evidence)
        for probe, found in line["probes"].items()
    ]


def limit_rows(evidence: Evidence) -> list[dict[str, Any]]:
    """One row per finished training and parameter limit, for Fig. 5 and Table 4."""
    return [
        {
            **_head(evidence, group, name, line),
            "transition": (line["transitions"]["epochs"] or [""])[0],
            **{key: found[key] for key in ("max_params", "params", "search", "test")},
        }
        for group, name, line in _all_lines(evidence)
        for found in line["searched"]
    ]


def transition_rows(evidence: Evidence) -> list[dict[str, Any]]:
    """The rows of Table 4: those of :func:`limit_rows` with equal steps."""
    return [row for row in limit_rows(evidence) if row["group"] == "steps"]


def _all_lines(evidence: Evidence) -> list[tuple[str, str, Line]]:
    """Every finished line of a method once, with its group and name."""
    return [
        (group, name, line)
        for group in GROUPS
        for name, lines in evidence.rows(group).items()
        if name != "uniform" or group == "steps"
        for line in lines
    ]


def _head(evidence: Evidence, group: str, name: str, line: Line) -> dict[str, Any]:
    compute = evidence.compute(line)
    return {
        "name": name,
        "group": group,
        "seed": line["seed"],
        "epochs": line["epochs"],
        "compute": "" if compute is None else round(compute, 4),
    }


_HEAD = ["name", "group", "seed", "epochs", "compute"]
FILES: Mapping[str, tuple[Callable[[Evidence], list[dict[str, Any]]], list[str]]] = {
    "probes.csv": (probe_rows, [*_HEAD, "probe", "params", "search", "test"]),
    "limits.csv": (limit_rows, [*_HEAD, "transition", "max_params", "params", "search", "test"]),
    "transitions.csv": (transition_rows, [*_HEAD, "transition", "max_params", "params", "search", "test"]),
}
"""The CSV files, with their columns."""


def to_csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Rows as CSV with a header."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def draw_limits(evidence: Evidence) -> str:
    """Fig. 5 as SVG: test accuracy against parameter limit, one line per method, for equal steps and for equal compute."""

    def panels(axes: Sequence[Axes]) -> None:
        for panel, (group, title) in zip(axes, GROUPS.items(), strict=True):
            panel.set_title(title)
            for name, lines in evidence.rows(group).items():
                limits = sorted({found["max_params"] for line in lines for found in line["searched"]})
                _curve(
                    panel, [limit / 1000 for limit in limits], [[under(line, limit) for line in lines] for limit in limits], name
                )
            panel.set_xlabel("parameter limit, thousands")
        uniform = [found["test"] for line in evidence.uniform.values() for found in line["searched"]]
        if uniform:
            # A method that leaves most subnets untrained would press all other lines together.
            lowest = 100 * min(uniform) - _CUT_POINTS
            axes[0].set_ylim(bottom=max(axes[0].get_ylim()[0], lowest))

    return to_svg(panels, len(GROUPS))


def draw_transitions(evidence: Evidence) -> str:
    """Table 4 as SVG: test accuracy against T_1, one line per parameter limit; uniform is T_1 = 0."""

    def panel(axes: Sequence[Axes]) -> None:
        rows = [(name, lines) for name, lines in sweep(evidence) if name == "uniform" or name.startswith("growtas, T_1 at")]
        places = [(lines[0]["transitions"]["epochs"] or [0.0])[0] for _, lines in rows]
        for limit in _TABLE_LIMITS:
            _curve(
                axes[0],
                places,
                [[under(line, limit) for line in lines] for _, lines in rows],
                f"at most {limit // 1000} K parameters",
            )
        axes[0].set_xlabel("T_1, epochs (0: uniform)")

    return to_svg(panel, 1)


def _curve(panel: Axes, places: Sequence[float], values: Sequence[Sequence[float | None]], label: str) -> None:
    """Plots means with standard deviations over seeds, without places that have no value."""
    known = [(place, [100 * v for v in found if v is not None]) for place, found in zip(places, values, strict=True)]
    known = [(place, found) for place, found in known if found]
    if known:
        spread = [stdev(found) if len(found) > 1 else 0.0 for _, found in known]
        panel.errorbar(
            [p for p, _ in known], [fmean(found) for _, found in known], spread, label=label, marker="o", markersize=3, capsize=2
        )


def to_svg(draw: Callable[[Sequence[Axes]], None], panels: int) -> str:
    """A figure of one or several panels as SVG; the same for the same numbers."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "growtas", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(1.2 + 4.6 * panels, 3.6), layout="constrained")
        FigureCanvasSVG(figure)
        axes = list(figure.subplots(1, panels, squeeze=False, sharey=True)[0])
        draw(axes)
        axes[0].set_ylabel("test accuracy, %")
        for panel in axes:
            if panel.get_legend_handles_labels()[0]:
                panel.legend(fontsize=7)
            else:
                panel.text(0.5, 0.5, "no training is finished yet", ha="center", transform=panel.transAxes)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


FIGURES: Mapping[str, Callable[[Evidence], str]] = {"limits.svg": draw_limits, "transitions.svg": draw_transitions}


def write_all(evidence: Evidence, folder: Path, page: Path) -> None:
    """Writes every table and figure, each file completely or not at all."""
    texts = {folder / name: to_csv(rows(evidence), columns) for name, (rows, columns) in FILES.items()}
    texts |= {folder / name: draw(evidence) for name, draw in FIGURES.items()}
    texts[page] = fill(page.read_text(encoding="utf-8"), evidence)
    for path, text in texts.items():
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def main() -> None:
    """Draws everything from the ledger."""
    evidence = Evidence(PLAN, read_ledger(LEDGER))
    write_all(evidence, FOLDER, PAGE)
    sys.stdout.write(status(evidence) + "\n")


if __name__ == "__main__":
    main()
