"""Runs, records and tables of `benchmarks/stragglers.py`."""
