"""Participation processes: availability of clients by round."""
