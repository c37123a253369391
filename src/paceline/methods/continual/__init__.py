"""Methods for sequences of tasks."""
