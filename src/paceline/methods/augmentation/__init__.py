"""More and other samples made from a client's own."""
