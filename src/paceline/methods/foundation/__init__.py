"""Methods that tune pretrained models."""
