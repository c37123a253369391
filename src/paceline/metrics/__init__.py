"""Metrics that add up over batches and clients, so that they run centrally, federated and under secure aggregation."""

from paceline.core.metrics import Metric, Primary, adjusted_rand, figures
from paceline.core.spread import spread, spread_figures
from paceline.metrics.base import ClassMetric, LabelMetric, TokenMetric, ValueMetric
from paceline.metrics.classification import F1, Accuracy, BalancedAccuracy, Kappa, Matthews, Precision, Recall
from paceline.metrics.detection import DetectionMAP
from paceline.metrics.multilabel import ExactMatch, Hamming, MultilabelF1
from paceline.metrics.probability import Brier, CalibrationError, LogLoss, Perplexity
from paceline.metrics.ranking import AUROC, AveragePrecision, Youden
from paceline.metrics.regression import MAE, MAPE, R2, RMSE
from paceline.metrics.segmentation import Dice, IoU
from paceline.metrics.survival import Concordance
from paceline.metrics.text import Bleu, Rouge

__all__ = [
    "AUROC",
    "F1",
    "MAE",
    "MAPE",
    "R2",
    "RMSE",
    "Accuracy",
    "AveragePrecision",
    "BalancedAccuracy",
    "Bleu",
    "Brier",
    "CalibrationError",
    "ClassMetric",
    "Concordance",
    "DetectionMAP",
    "Dice",
    "ExactMatch",
    "Hamming",
    "IoU",
    "Kappa",
    "LabelMetric",
    "LogLoss",
    "Matthews",
    "Metric",
    "MultilabelF1",
    "Perplexity",
    "Precision",
    "Primary",
    "Recall",
    "Rouge",
    "TokenMetric",
    "ValueMetric",
    "Youden",
    "adjusted_rand",
    "figures",
    "spread",
    "spread_figures",
]
