"""Stage fingerprint: the machine that latencies are measured on.

It always runs, and so is the one that removes what killed stages left: where DVC restores a
stage's output from its cache, that stage does not run.
"""

from pathlib import Path

from pipeline.core.errors import run
from pipeline.core.files import remove_left
from pipeline.latency.fingerprint import update_fingerprint


def main() -> None:
    remove_left(Path("data"), deep=False)  # below it lie the user's own folders
    for folder in ("models", "metrics", "reports", ".work"):
        remove_left(Path(folder), deep=True)
    machine = update_fingerprint()
    print(f"{machine.cpu}, {machine.cores} core(s), {machine.memory_gib} GiB")


if __name__ == "__main__":
    run(main)
