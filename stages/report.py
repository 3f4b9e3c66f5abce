"""Stage report: everything that was recorded on one page."""

from pipeline.deliver.report import HTML, report
from pipeline.errors import run
from pipeline.params import load_params


def main() -> None:
    report(load_params())
    print(f"written: {HTML}")


if __name__ == "__main__":
    run(main)
