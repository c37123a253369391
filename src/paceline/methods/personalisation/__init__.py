"""Methods for personalised models."""
