"""Preloaded modules of a loopback federation, imported once by the fork server before it forks the parties."""

import importlib

import torch

from paceline.core.method import method_names

torch.set_num_threads(1)
for name in ("deploy.processes", "deploy.metrics", "tasks", "data.sources", "submodels.service", "aggregation.secure.program"):
    importlib.import_module(f"paceline.{name}")
for name in ("structlog", "zstandard"):
    importlib.import_module(name)
method_names()
