"""Imported once by the process that all parties of a loopback federation are forked from."""

import torch

from paceline.method import method_names

torch.set_num_threads(1)
method_names()
