"""Methods: stragglers."""
