"""Imported once by the process that all parties of a loopback federation are forked from."""

import importlib

import torch

from paceline.registry import method_names

torch.set_num_threads(1)
for name in ("deploy.processes", "deploy.metrics", "tasks", "data.sources", "submodels.service", "aggregation.secure.program"):
    importlib.import_module(f"paceline.{name}")
for name in ("structlog", "zstandard"):
    importlib.import_module(name)
method_names()
