"""A real federation, whatever carries its messages: who is who, what a client allows, what a server remembers.

Importing this package imports neither torch nor SQLAlchemy.
"""
