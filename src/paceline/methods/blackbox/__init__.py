"""Methods for objectives that can only be evaluated."""
