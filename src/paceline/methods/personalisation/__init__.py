"""Methods in which a client has a model, or a part of one, of its own."""
