"""Methods that send little."""
