"""Byzantine-robust methods."""
