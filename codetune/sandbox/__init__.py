"""Runs programs that nobody trusts. Knows nothing of benchmarks."""
