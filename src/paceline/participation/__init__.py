"""Participation processes: which clients are available in which round."""
