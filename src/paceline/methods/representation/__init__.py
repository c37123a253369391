"""Representation learning: clients without labels train one network of features."""
