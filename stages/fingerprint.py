"""Stage fingerprint: the machine that latencies are measured on. Always runs."""

from pipeline.core.errors import run
from pipeline.latency.fingerprint import update_fingerprint


def main() -> None:
    machine = update_fingerprint()
    print(f"{machine.cpu}, {machine.cores} core(s), {machine.memory_gib} GiB")


if __name__ == "__main__":
    run(main)
