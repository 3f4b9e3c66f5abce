"""Stage report: everything that was recorded on one page."""

from pipeline.core.errors import run
from pipeline.core.params import load
from pipeline.report.page import HTML, report
from pipeline.report.params import ReportParams


def main() -> None:
    report(load(ReportParams))
    print(f"written: {HTML}")


if __name__ == "__main__":
    run(main)
