"""Methods for tasks that follow one another."""
