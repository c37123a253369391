"""Reference models: small, plain, and traceable by `torch.fx`, so that sub-models can be cut from them."""

from paceline.models.build import build, model_options

__all__ = ["build", "model_options"]
