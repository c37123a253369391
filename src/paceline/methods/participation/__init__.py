"""Methods for clients that take part unequally often, or with unequal roles."""
