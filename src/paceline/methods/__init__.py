"""The methods: one file per published system, in a folder per family.

Every method's class is an attribute of this package, imported when it is first used: ``paceline.methods.FedProx(mu=0.1)``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from paceline import registry

if TYPE_CHECKING:
    from paceline.methods.asynchronous.afacstable import AfaCsTable as AfaCsTable
    from paceline.methods.asynchronous.afl import AfaCd as AfaCd
    from paceline.methods.asynchronous.afl import AfaCs as AfaCs
    from paceline.methods.asynchronous.fedasync import FedAsync as FedAsync
    from paceline.methods.asynchronous.fedbuff import FedBuff as FedBuff
    from paceline.methods.asynchronous.fedfix import FedFix as FedFix
    from paceline.methods.augmentation.madaug import MADAug as MADAug
    from paceline.methods.augmentation.semaug import SemAug as SemAug
    from paceline.methods.blackbox.fedzo import FedZO as FedZO
    from paceline.methods.blackbox.fzoos import FZooS as FZooS
    from paceline.methods.clustering.heterogeneityreport import HeterogeneityReport as HeterogeneityReport
    from paceline.methods.clustering.ocfl import OCFL as OCFL
    from paceline.methods.compression.autoflip import AutoFLIP as AutoFLIP
    from paceline.methods.compression.frl import FRL as FRL
    from paceline.methods.compression.frlchecked import FRLChecked as FRLChecked
    from paceline.methods.continual.fot import FOT as FOT
    from paceline.methods.foundation.fedins import FedIns as FedIns
    from paceline.methods.foundation.fedit import FedIT as FedIT
    from paceline.methods.foundation.fedpeft import FedPEFT as FedPEFT
    from paceline.methods.foundation.localtuning import LocalTuning as LocalTuning
    from paceline.methods.optimisation.fedavg import FedAvg as FedAvg
    from paceline.methods.optimisation.feddyn import FedDyn as FedDyn
    from paceline.methods.optimisation.fedka import FedKA as FedKA
    from paceline.methods.optimisation.fedld import FedLD as FedLD
    from paceline.methods.optimisation.fedld import FedLDSum as FedLDSum
    from paceline.methods.optimisation.fedlex import FedLEx as FedLEx
    from paceline.methods.optimisation.fedlgd import FedLGD as FedLGD
    from paceline.methods.optimisation.fednova import FedNova as FedNova
    from paceline.methods.optimisation.fedopt import FedOpt as FedOpt
    from paceline.methods.optimisation.fedprox import FedProx as FedProx
    from paceline.methods.optimisation.fedspeed import FedSpeed as FedSpeed
    from paceline.methods.optimisation.momentum import FedAvgM as FedAvgM
    from paceline.methods.optimisation.momentum import FedAvgMVR as FedAvgMVR
    from paceline.methods.optimisation.momentum import ScaffoldM as ScaffoldM
    from paceline.methods.optimisation.momentum import ScaffoldMVR as ScaffoldMVR
    from paceline.methods.optimisation.moon import Moon as Moon
    from paceline.methods.optimisation.scaffold import Scaffold as Scaffold
    from paceline.methods.participation.fedamd import FedAmd as FedAmd
    from paceline.methods.participation.fedau import FedAu as FedAu
    from paceline.methods.participation.fedstale import FedStale as FedStale
    from paceline.methods.participation.fedstaletable import FedStaleTable as FedStaleTable
    from paceline.methods.participation.fedvarp import FedVarp as FedVarp
    from paceline.methods.participation.fedvarp import Mifa as Mifa
    from paceline.methods.personalisation.apfl import APFL as APFL
    from paceline.methods.personalisation.ditto import Ditto as Ditto
    from paceline.methods.personalisation.fedbabu import FedBABU as FedBABU
    from paceline.methods.personalisation.fedbn import FedBN as FedBN
    from paceline.methods.personalisation.fedd2s import FedD2S as FedD2S
    from paceline.methods.personalisation.fedd2ssum import FedD2SSum as FedD2SSum
    from paceline.methods.personalisation.fedgela import FedGELA as FedGELA
    from paceline.methods.personalisation.fedgh import FedGH as FedGH
    from paceline.methods.personalisation.fedgh import FedGHSum as FedGHSum
    from paceline.methods.personalisation.fedloge import FedLoGe as FedLoGe
    from paceline.methods.personalisation.fedper import FedPer as FedPer
    from paceline.methods.personalisation.fedproto import FedProto as FedProto
    from paceline.methods.personalisation.fedre import FedRE as FedRE
    from paceline.methods.personalisation.fedre import FedRESum as FedRESum
    from paceline.methods.personalisation.fedrep import FedRep as FedRep
    from paceline.methods.personalisation.fedsa import FedSA as FedSA
    from paceline.methods.personalisation.finetuned import FineTuned as FineTuned
    from paceline.methods.personalisation.fraug import FRAug as FRAug
    from paceline.methods.personalisation.localonly import LocalOnly as LocalOnly
    from paceline.methods.personalisation.perfedavg import PerFedAvg as PerFedAvg
    from paceline.methods.personalisation.pfedme import PFedMe as PFedMe
    from paceline.methods.personalisation.pfedpg import PFedPG as PFedPG
    from paceline.methods.personalisation.pfedpg import PFedPGSum as PFedPGSum
    from paceline.methods.representation.franca import Franca as Franca
    from paceline.methods.robust.fal import FAL as FAL
    from paceline.methods.robust.fedagain import FedAgain as FedAgain
    from paceline.methods.robust.fedagain import FedAgainSum as FedAgainSum
    from paceline.methods.robust.flag import Flag as Flag
    from paceline.methods.robust.robust import Bulyan as Bulyan
    from paceline.methods.robust.robust import GeometricMedian as GeometricMedian
    from paceline.methods.robust.robust import Krum as Krum
    from paceline.methods.robust.robust import MeaMed as MeaMed
    from paceline.methods.robust.robust import Median as Median
    from paceline.methods.robust.robust import MultiKrum as MultiKrum
    from paceline.methods.robust.robust import Phocas as Phocas
    from paceline.methods.robust.robust import TrimmedMean as TrimmedMean
    from paceline.methods.stragglers.clip import Clip as Clip
    from paceline.methods.stragglers.dropstragglers import DropStragglers as DropStragglers
    from paceline.methods.stragglers.fedconv import FedConv as FedConv
    from paceline.methods.stragglers.fjord import Fjord as Fjord
    from paceline.methods.stragglers.fluid import Fluid as Fluid
    from paceline.methods.stragglers.heterofl import HeteroFL as HeteroFL
    from paceline.methods.stragglers.randomdropout import RandomDropout as RandomDropout
    from paceline.methods.stragglers.saliency import Saliency as Saliency

_TARGETS = {target.partition(":")[2]: target for target in registry.BUILT_IN["method"].values()}
"""Import path of each class."""

__all__ = sorted(_TARGETS)


def __getattr__(name: str) -> Any:
    if name in _TARGETS:
        return getattr(import_module(_TARGETS[name].partition(":")[0]), name)
    from paceline.core.errors import nearest

    hint = nearest(name, __all__) if not name.startswith("_") else ""
    raise AttributeError(f"module {__name__!r} has no method {name!r}{hint}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
