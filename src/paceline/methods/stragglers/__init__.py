"""Methods against stragglers."""
