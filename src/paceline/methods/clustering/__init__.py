"""Clustered methods: one model for each group of clients."""
