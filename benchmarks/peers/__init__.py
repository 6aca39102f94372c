"""The programs that `benchmarks.serving` measures, each run in an environment of its own as `python -m`."""
