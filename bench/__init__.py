"""The benchmark suite: ratios from one run, never absolute times. See docs/benchmarks.md."""
