"""Methods: optimisation."""
