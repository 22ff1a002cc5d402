"""Benchmarks: `make bench-<name>` prints a table and writes `benchmarks/<name>.json`. Not part of the suite."""
