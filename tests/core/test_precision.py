"""float32 is float32, TF32 is on only where it was asked for, and both are put back, whichever of torch's settings was used."""

from dataclasses import dataclass

import pytest
import torch

from paceline.core.method import on_client
from paceline.core.precision import kept_precision, set_precision
from paceline.core.update import Update
from paceline.methods.optimisation.fedavg import FedAvg
from paceline.run import RunConfig, prepare
from tests.conftest import make_task

B = torch.backends
NEW = hasattr(B.cudnn, "conv")


def flags():
    parts = (B.cudnn.conv, B.cudnn.rnn, B.cuda.matmul, B.mkldnn.matmul) if NEW else ()
    return [part.fp32_precision for part in parts]


def rounds_factors():
    """Return whether (matrix products, convolutions) may use TF32."""
    return torch.get_float32_matmul_precision() != "highest", B.cudnn.allow_tf32


@pytest.fixture(autouse=True)
def fresh():
    yield
    for part in (B.cudnn.conv, B.cudnn.rnn) if NEW else ():
        part.fp32_precision = "tf32"
    B.cudnn.allow_tf32 = True
    if NEW:
        B.cuda.matmul.fp32_precision = "ieee"
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(("precision", "tf32"), [("float32", False), ("tf32", True), ("bf16", False)])
def test_a_setting_is_that_of_products_and_convolutions(precision, tf32):
    set_precision("float32" if tf32 else "tf32")
    set_precision(precision)
    assert rounds_factors() == (tf32, tf32)


OLD = {
    "torch's default": lambda: None,
    "off": lambda: setattr(B.cudnn, "allow_tf32", False),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
}
NEWER = {
    "convolutions only": lambda: setattr(B.cudnn.conv, "fp32_precision", "ieee"),
    "products only": lambda: setattr(B.cuda.matmul, "fp32_precision", "tf32"),
}


@pytest.mark.parametrize("before", [*OLD, *NEWER])
@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_it_is_put_back_after_an_error(before, precision):
    if before in NEWER and not NEW:
        pytest.skip("needs torch 2.9")
    {**OLD, **NEWER}[before]()
    wanted = flags()

    def fails():
        with kept_precision():
            set_precision(precision)
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert flags() == wanted
    if before in OLD:
        assert rounds_factors() == (before == "medium", before != "off")


@dataclass(frozen=True)
class Telling(FedAvg):
    """Returns the flags of the process that trains."""

    @on_client(each=True)
    def tell(self, client, message):
        return Update(products=float(rounds_factors()[0]), convolutions=float(rounds_factors()[1]), weight=1)

    def round(self, fed, state):
        for reply in fed.each(self.tell, None, over=fed.sample()).values():
            fed.last.notes |= {"products": reply.products, "convolutions": reply.convolutions}
        notes = dict(fed.last.notes)
        state = super().round(fed, state)
        fed.last.notes |= notes
        return state


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("precision", "tf32"), [("float32", 0.0), ("tf32", 1.0)])
def test_a_run_and_its_workers_use_it(precision, tf32, workers):
    before = flags()
    values = {"method": f"{__name__}:Telling", "task": "blobs", "clients": 4, "cohort": 4, "rounds": 1, "vectorize": "off"}
    run = prepare(RunConfig.build(values | {"precision": precision, "workers": workers}), task=make_task())
    record = run.go().history[-1]
    assert (record["note_products"], record["note_convolutions"]) == (tf32, tf32)
    assert flags() == before
