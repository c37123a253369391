"""Experiment trackers: TensorBoard, MLflow and Weights & Biases. Each is an extra of its own name."""

from paceline.trackers.base import Tracker
from paceline.trackers.mlflow import MLflow
from paceline.trackers.tensorboard import TensorBoard
from paceline.trackers.wandb import WandB

__all__ = ["MLflow", "TensorBoard", "Tracker", "WandB"]
