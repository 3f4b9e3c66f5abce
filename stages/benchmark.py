"""Stage benchmark: latency of every artifact beside the frozen reference."""

from pipeline.core.errors import run
from pipeline.core.params import load
from pipeline.latency.benchmark import benchmark
from pipeline.latency.params import BenchmarkParams


def main() -> None:
    record = benchmark(load(BenchmarkParams))
    for key, row in record.rows.items():
        if row.latency_ms:
            print(f"{key}: p50 {row.latency_ms.p50:.3f} ms, {row.ratio_to_reference:.2f} x ref")
        else:
            print(f"{key}: {row.status.replace('_', ' ')}: {row.reason}")


if __name__ == "__main__":
    run(main)
