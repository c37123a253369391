"""Kinds of objects that have names, and the import paths of the built-in ones. Importing this imports nothing else."""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["ALIASES", "BUILT_IN", "KINDS", "Kind", "KindInfo"]

Kind = Literal["method", "task", "model", "metric", "engine", "aggregation", "fleet", "participation", "adversary", "tracker"]


class KindInfo(NamedTuple):
    """Properties common to all objects of a kind.

    Args:
        group: group of entry points.
        what: description of a valid object, for error messages.
        value: the option whose key may be omitted in a specification; empty if there is none.
    """

    group: str
    what: str
    value: str = ""


KINDS: dict[Kind, KindInfo] = {
    "method": KindInfo("paceline.methods", "a class below `paceline.core.method.Method`"),
    "task": KindInfo("paceline.tasks", "a `Task`, or a function that returns one; it may take ``model`` and ``seed``"),
    "model": KindInfo(
        "paceline.models", "a function or class that makes a module; it may take ``shape``, ``num_classes`` and ``symbols``"
    ),
    "metric": KindInfo("paceline.metrics", "a class below `paceline.metrics.Metric`"),
    "engine": KindInfo("paceline.engines", "a class below `paceline.engines.Pool`, made from ``setup`` and ``workers``"),
    "aggregation": KindInfo("paceline.aggregations", "an `Aggregation`; it may take ``bound``, ``config`` and ``agreed``"),
    "fleet": KindInfo("paceline.fleets", "a class below `paceline.devices.Fleet`"),
    "participation": KindInfo("paceline.participation", "a class below `Participation`, or a function that returns one", "rates"),
    "adversary": KindInfo("paceline.adversaries", "a class below `paceline.adversaries.behaviours.Adversary`", "share"),
    "tracker": KindInfo("paceline.trackers", "a class below `paceline.trackers.Tracker`", "place"),
}
"""All kinds, with their entry point groups."""

BUILT_IN: dict[Kind, dict[str, str]] = {
    "method": {
        "afacd": "paceline.methods.asynchronous.afl:AfaCd",
        "afacs": "paceline.methods.asynchronous.afl:AfaCs",
        "afacstable": "paceline.methods.asynchronous.afacstable:AfaCsTable",
        "apfl": "paceline.methods.personalisation.apfl:APFL",
        "bulyan": "paceline.methods.robust.robust:Bulyan",
        "clip": "paceline.methods.stragglers.clip:Clip",
        "ditto": "paceline.methods.personalisation.ditto:Ditto",
        "dropstragglers": "paceline.methods.stragglers.dropstragglers:DropStragglers",
        "fal": "paceline.methods.robust.fal:FAL",
        "fedagain": "paceline.methods.robust.fedagain:FedAgain",
        "fedagainsum": "paceline.methods.robust.fedagain:FedAgainSum",
        "fedamd": "paceline.methods.participation.fedamd:FedAmd",
        "fedasync": "paceline.methods.asynchronous.fedasync:FedAsync",
        "fedau": "paceline.methods.participation.fedau:FedAu",
        "fedavg": "paceline.methods.optimisation.fedavg:FedAvg",
        "fedavgm": "paceline.methods.optimisation.momentum:FedAvgM",
        "fedavgmvr": "paceline.methods.optimisation.momentum:FedAvgMVR",
        "fedbn": "paceline.methods.personalisation.fedbn:FedBN",
        "fedbuff": "paceline.methods.asynchronous.fedbuff:FedBuff",
        "feddyn": "paceline.methods.optimisation.feddyn:FedDyn",
        "fedfix": "paceline.methods.asynchronous.fedfix:FedFix",
        "fedgela": "paceline.methods.personalisation.fedgela:FedGELA",
        "fedgh": "paceline.methods.personalisation.fedgh:FedGH",
        "fedghsum": "paceline.methods.personalisation.fedgh:FedGHSum",
        "fedit": "paceline.methods.foundation.fedit:FedIT",
        "fedld": "paceline.methods.optimisation.fedld:FedLD",
        "fedldsum": "paceline.methods.optimisation.fedld:FedLDSum",
        "fedlex": "paceline.methods.optimisation.fedlex:FedLEx",
        "fednova": "paceline.methods.optimisation.fednova:FedNova",
        "fedopt": "paceline.methods.optimisation.fedopt:FedOpt",
        "fedpeft": "paceline.methods.foundation.fedpeft:FedPEFT",
        "fedper": "paceline.methods.personalisation.fedper:FedPer",
        "fedproto": "paceline.methods.personalisation.fedproto:FedProto",
        "fedprox": "paceline.methods.optimisation.fedprox:FedProx",
        "fedrep": "paceline.methods.personalisation.fedrep:FedRep",
        "fedsa": "paceline.methods.personalisation.fedsa:FedSA",
        "fedspeed": "paceline.methods.optimisation.fedspeed:FedSpeed",
        "fedstale": "paceline.methods.participation.fedstale:FedStale",
        "fedstaletable": "paceline.methods.participation.fedstaletable:FedStaleTable",
        "fedvarp": "paceline.methods.participation.fedvarp:FedVarp",
        "fedzo": "paceline.methods.blackbox.fedzo:FedZO",
        "finetuned": "paceline.methods.personalisation.finetuned:FineTuned",
        "fjord": "paceline.methods.stragglers.fjord:Fjord",
        "flag": "paceline.methods.robust.flag:Flag",
        "fluid": "paceline.methods.stragglers.fluid:Fluid",
        "fot": "paceline.methods.continual.fot:FOT",
        "frl": "paceline.methods.compression.frl:FRL",
        "frlchecked": "paceline.methods.compression.frlchecked:FRLChecked",
        "fzoos": "paceline.methods.blackbox.fzoos:FZooS",
        "geometricmedian": "paceline.methods.robust.robust:GeometricMedian",
        "heterofl": "paceline.methods.stragglers.heterofl:HeteroFL",
        "heterogeneityreport": "paceline.methods.clustering.heterogeneityreport:HeterogeneityReport",
        "krum": "paceline.methods.robust.robust:Krum",
        "localonly": "paceline.methods.personalisation.localonly:LocalOnly",
        "localtuning": "paceline.methods.foundation.localtuning:LocalTuning",
        "meamed": "paceline.methods.robust.robust:MeaMed",
        "median": "paceline.methods.robust.robust:Median",
        "mifa": "paceline.methods.participation.fedvarp:Mifa",
        "multikrum": "paceline.methods.robust.robust:MultiKrum",
        "ocfl": "paceline.methods.clustering.ocfl:OCFL",
        "perfedavg": "paceline.methods.personalisation.perfedavg:PerFedAvg",
        "pfedme": "paceline.methods.personalisation.pfedme:PFedMe",
        "phocas": "paceline.methods.robust.robust:Phocas",
        "randomdropout": "paceline.methods.stragglers.randomdropout:RandomDropout",
        "saliency": "paceline.methods.stragglers.saliency:Saliency",
        "scaffold": "paceline.methods.optimisation.scaffold:Scaffold",
        "scaffoldm": "paceline.methods.optimisation.momentum:ScaffoldM",
        "scaffoldmvr": "paceline.methods.optimisation.momentum:ScaffoldMVR",
        "trimmedmean": "paceline.methods.robust.robust:TrimmedMean",
    },
    "task": {
        "digits": "paceline.tasks.datasets:DIGITS",
        "mnist-5k": "paceline.tasks.datasets:MNIST_5K",
        "fashion-mnist": "paceline.tasks.datasets:FASHION_MNIST",
        "cifar10-test-split": "paceline.tasks.datasets:CIFAR10_TEST_SPLIT",
        "fontwriters": "paceline.tasks.datasets:FONTWRITERS",
        "shakespeare": "paceline.tasks.datasets:SHAKESPEARE",
        "heart-disease": "paceline.tasks.datasets:HEART_DISEASE",
        "cd4": "paceline.tasks.datasets:CD4",
        "watch-activity": "paceline.tasks.datasets:WATCH_ACTIVITY",
        "life-expectancy": "paceline.tasks.datasets:LIFE_EXPECTANCY",
        "mri-tissue": "paceline.tasks.domains:MRI_TISSUE",
        "20newsgroups": "paceline.tasks.datasets:NEWSGROUPS",
        "film-genres": "paceline.tasks.datasets:FILM_GENRES",
        "spoken-digits": "paceline.tasks.datasets:SPOKEN_DIGITS",
        "four-digits": "paceline.tasks.domains:FOUR_DIGITS",
        "emoji-vendors": "paceline.tasks.domains:EMOJI_VENDORS",
        "corrupted": "paceline.tasks.domains:load_corrupted",
        "emoji-pairs": "paceline.tasks.pairs:load_pairs",
        "permuted": "paceline.tasks.sequence:load_permuted",
        "split": "paceline.tasks.sequence:load_split",
        "quadratic": "paceline.tasks.blackbox:quadratic",
        "metric": "paceline.tasks.blackbox:metric",
        "attack": "paceline.tasks.blackbox:attack",
        "anomaly": "paceline.tasks.anomaly:load_anomaly",
        "shading": "paceline.tasks.shading:load_shading",
        "frozen-features": "paceline.tasks.backbones:load_frozen",
        "vit-tuning": "paceline.tasks.vision:load_tuning",
        "instructions": "paceline.tasks.instructions:load_instructions",
        "chatterbot": "paceline.tasks.instructions:load_chatterbot",
    },
    "model": {
        "logistic": "paceline.models.dense:logistic",
        "mlp": "paceline.models.dense:mlp",
        "tiny_cnn": "paceline.models.conv:tiny_cnn",
        "cnn": "paceline.models.conv:cnn",
        "femnist_cnn": "paceline.models.conv:femnist_cnn",
        "vgg9": "paceline.models.conv:vgg9",
        "lstm": "paceline.models.recurrent:lstm",
        "vit": "paceline.models.transformer:vit",
        "char_model": "paceline.models.transformer:char_model",
        "resnet18": "paceline.models.resnet:resnet18",
        "mobilenet_v2": "paceline.models.mobilenet:mobilenet_v2",
        "unet": "paceline.models.unet:unet",
        "cnn1d": "paceline.models.series:cnn1d",
        "gru": "paceline.models.series:gru",
        "word_bag": "paceline.models.text:word_bag",
        "tabular": "paceline.models.tabular:tabular",
        "text_encoder": "paceline.models.text:text_encoder",
    },
    "metric": {
        "accuracy": "paceline.metrics.classification:Accuracy",
        "auroc": "paceline.metrics.ranking:AUROC",
        "average-precision": "paceline.metrics.ranking:AveragePrecision",
        "balanced-accuracy": "paceline.metrics.classification:BalancedAccuracy",
        "bleu": "paceline.metrics.text:Bleu",
        "brier": "paceline.metrics.probability:Brier",
        "calibration-error": "paceline.metrics.probability:CalibrationError",
        "concordance": "paceline.metrics.survival:Concordance",
        "detection-map": "paceline.metrics.detection:DetectionMAP",
        "dice": "paceline.metrics.segmentation:Dice",
        "exact-match": "paceline.metrics.multilabel:ExactMatch",
        "f1": "paceline.metrics.classification:F1",
        "hamming": "paceline.metrics.multilabel:Hamming",
        "iou": "paceline.metrics.segmentation:IoU",
        "kappa": "paceline.metrics.classification:Kappa",
        "log-loss": "paceline.metrics.probability:LogLoss",
        "mae": "paceline.metrics.regression:MAE",
        "mape": "paceline.metrics.regression:MAPE",
        "matthews": "paceline.metrics.classification:Matthews",
        "multilabel-f1": "paceline.metrics.multilabel:MultilabelF1",
        "perplexity": "paceline.metrics.probability:Perplexity",
        "precision": "paceline.metrics.classification:Precision",
        "r2": "paceline.metrics.regression:R2",
        "recall": "paceline.metrics.classification:Recall",
        "rmse": "paceline.metrics.regression:RMSE",
        "rouge": "paceline.metrics.text:Rouge",
        "youden": "paceline.metrics.ranking:Youden",
    },
    "engine": {
        "local": "paceline.engines.local:LocalEngine",
        "debug": "paceline.engines.debug:DebugEngine",
        "ray": "paceline.engines.ray:RayEngine",
    },
    "aggregation": {
        "plain": "paceline.aggregation.plain:Plain",
        "secure": "paceline.aggregation.secure.program:SecureAggregation",
        "secure-arithmetic": "paceline.aggregation.secure.arithmetic:SecureArithmetic",
    },
    "fleet": {
        "homogeneous": "paceline.devices.fleet:Homogeneous",
        "stragglers": "paceline.devices.fleet:Stragglers",
        "mobile": "paceline.devices.fleet:Mobile",
        "spread": "paceline.devices.fleet:Spread",
        "changing": "paceline.devices.changing:Changing",
        "trace": "paceline.devices.changing:read_fleet",
    },
    "participation": {
        "always": "paceline.participation.processes:Participation",
        "bernoulli": "paceline.participation.processes:Bernoulli",
        "markov": "paceline.participation.processes:Markov",
        "cyclic": "paceline.participation.processes:Cyclic",
        "diurnal": "paceline.participation.processes:Diurnal",
        "trace": "paceline.participation.processes:read_trace",
    },
    "adversary": {
        "signflip": "paceline.adversaries.behaviours:SignFlip",
        "gaussian": "paceline.adversaries.behaviours:Gaussian",
        "random": "paceline.adversaries.behaviours:Random",
        "drop": "paceline.adversaries.behaviours:Drop",
        "alie": "paceline.adversaries.behaviours:Alie",
        "ipm": "paceline.adversaries.behaviours:InnerProduct",
        "minmax": "paceline.adversaries.behaviours:MinMax",
        "ranks": "paceline.adversaries.behaviours:Ranks",
        "labelflip": "paceline.adversaries.behaviours:LabelFlip",
    },
    "tracker": {
        "tensorboard": "paceline.trackers.tensorboard:TensorBoard",
        "mlflow": "paceline.trackers.mlflow:MLflow",
        "wandb": "paceline.trackers.wandb:WandB",
    },
}
"""Import path of every built-in object, by kind and name; a test compares it with the files."""

ALIASES: dict[Kind, dict[str, str]] = {
    "model": {
        "logreg": "logistic",
        "tiny-cnn": "tiny_cnn",
        "femnist-cnn": "femnist_cnn",
        "char-model": "char_model",
        "mobilenet-v2": "mobilenet_v2",
        "word-bag": "word_bag",
        "text-encoder": "text_encoder",
    },
}
"""Alternative spellings of built-in names; not listed."""
