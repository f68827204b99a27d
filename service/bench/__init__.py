"""Benchmarks: what a user would write with other libraries beside what this one does, on one problem, in one run."""
