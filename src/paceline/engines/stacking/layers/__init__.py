"""Layers of stacked clients that ``torch.func.vmap`` alone cannot run, or not with the results of training alone."""

from paceline.engines.stacking.layers.buffers import Buffers
from paceline.engines.stacking.layers.mode import StackedLayers
from paceline.engines.stacking.layers.traits import Traits, traits_of

__all__ = ["Buffers", "StackedLayers", "Traits", "traits_of"]
