"""Benchmarks that users run on their own machine; each prints its context."""

from prerank.bench.data import bench_data
from prerank.bench.machine import describe_machine
from prerank.bench.refresh import bench_refresh
from prerank.bench.train import bench_train

__all__ = ["bench_data", "bench_refresh", "bench_train", "describe_machine"]
