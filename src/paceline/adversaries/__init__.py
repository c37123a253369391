"""Byzantine clients for tests and simulations."""
