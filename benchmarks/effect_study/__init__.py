"""Tuned comparisons of methods with baselines: rows, search, runs, verdicts and the table."""
