"""The programs measured by `benchmarks.serving` and `.training`, run as `python -m`, some in separate environments."""
