"""A real server: its run, its database, its events."""
