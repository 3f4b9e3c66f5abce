"""Latency: the harness, interleaved rounds, conditions, statistics, the machine."""
