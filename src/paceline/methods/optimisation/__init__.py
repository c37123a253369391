"""Methods that change local or server optimisation."""
