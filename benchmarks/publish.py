"""Updates the pages of docs that show results from benchmarks/results: ``python -m benchmarks.publish``.

Every result is drawn, and each marked place in the pages is filled with a table of its result, or with its plot:

    <!-- RESULT: TABLE -->
    the table
    <!-- end -->

    <!-- RESULT: plot -->
    the plot
    <!-- end -->

A missing result is shown as not measured.
"""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.plots import PLOTS, draw
from benchmarks.report import RESULTS, read_report

PAGES = ("benchmarks.md", "study.md", "scaling.md")
DOCS = Path(__file__).resolve().parent.parent / "docs"
PLACE = re.compile(r"<!-- (?P<result>[\w-]+): (?P<what>[^>]+?) -->\n(?P<shown>.*?)<!-- end -->", re.DOTALL)


def main(results: Path = RESULTS, docs: Path = DOCS) -> None:
    """Draw the results and fill the places of the pages."""
    (docs / "plots").mkdir(exist_ok=True)
    for kind in PLOTS:
        for source in sorted(results.glob(f"{kind}_*.json")):
            draw(kind, read_report(source), source, plot_of(source, docs))
    for page in (docs / name for name in PAGES if (docs / name).exists()):
        page.write_text(PLACE.sub(lambda place: _filled(place, results), page.read_text()))


def plot_of(source: Path, docs: Path = DOCS) -> Path:
    """Return the path of a result's plot."""
    return docs / "plots" / f"{source.stem}.svg"


def shown(result: str, what: str, results: Path = RESULTS) -> str:
    """Return the Markdown for a result: its plot, or one table and where it was measured."""
    source = results / f"{result}.json"
    if not source.is_file():
        return f"Not measured: there is no benchmarks/results/{source.name}.\n"
    report = read_report(source)
    if what == "plot":
        return f"![{report.title}](plots/{plot_of(source).name})\n"
    if what not in {table.name for table in report.tables}:
        return f"Not measured: benchmarks/results/{source.name} has no such table.\n"
    table = report.table(what)
    notes = "".join(f"{note}.\n" for note in table.notes)
    return f"{notes}{report.hardware}, {report.date}, `{report.command}`\n\n{table.markdown()}\n"


def _filled(place: re.Match[str], results: Path) -> str:
    filling = shown(place["result"], place["what"], results)
    return f"<!-- {place['result']}: {place['what']} -->\n{filling}<!-- end -->"


if __name__ == "__main__":
    main()
