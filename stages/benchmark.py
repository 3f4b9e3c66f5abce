"""Stage benchmark: latency of every artifact beside the frozen reference."""

from pipeline.errors import run
from pipeline.measure.benchmark import benchmark
from pipeline.params import load_params


def main() -> None:
    record = benchmark(load_params())
    for key, row in record.rows.items():
        if row.latency_ms:
            print(f"{key}: p50 {row.latency_ms.p50:.3f} ms, {row.ratio_to_reference:.2f} x ref")
        else:
            print(f"{key}: {row.status.replace('_', ' ')}: {row.reason}")


if __name__ == "__main__":
    run(main)
