"""Reference models: small, plain, and traceable by `torch.fx`, so that sub-models can be cut from them."""

from paceline.models.registry import build, model_names, model_options

__all__ = ["build", "model_names", "model_options"]
