"""Rows of the table of effects, a module for each family."""
