"""A real federation, whatever carries its messages: who is who, what a client allows, what a server remembers."""
