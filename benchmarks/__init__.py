"""Benchmarks: this library against what people write today, in one run (`python -m benchmarks`)."""
