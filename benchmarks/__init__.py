"""Benchmarks: every figure beside its baseline of the same run (`make bench`, `make bench ONLY=path,trains`)."""
