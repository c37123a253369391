"""The same workload in pfl-research, where it is installed (``pip install 'pfl[pytorch]'``), in a process of its own."""

from __future__ import annotations

import importlib.util
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["installed", "seconds_of_a_round"]


def installed() -> bool:
    """Return whether pfl-research can be imported."""
    return importlib.util.find_spec("pfl") is not None


def seconds_of_a_round(rounds: int = 5) -> float:
    """Return the seconds of one of its rounds: the median of several, after two that warm up."""
    command, here = [sys.executable, "-m", __name__, str(rounds)], Path(__file__).parents[1]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["it ended with an error"])[-1][:200])
    return float(json.loads(done.stdout.strip().splitlines()[-1]))


def _main(rounds: int) -> None:
    import statistics
    import time

    import numpy as np
    import torch
    import torch.nn.functional as F
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback import TrainingProcessCallback
    from pfl.data import ArtificialFederatedDataset
    from pfl.data.dataset import Dataset
    from pfl.hyperparam import NNTrainHyperParams
    from pfl.model.pytorch import PyTorchModel

    from gpu_study.workloads import CIFAR

    work = CIFAR[False]
    task, device = work.task(), "cuda" if torch.cuda.is_available() else "cpu"
    x, y = task.train.x.to(device), task.train.y.to(device)

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = work.model()

        def loss(self, inputs: Any, targets: Any, eval: bool = False) -> Any:
            self.eval() if eval else self.train()
            return F.cross_entropy(self.net(inputs), targets)

        def metrics(self, inputs: Any, targets: Any, eval: bool = True) -> Any:
            return {}

    times: list[float] = []

    class Clock(TrainingProcessCallback):
        def after_central_iteration(self, *args: Any, **kwargs: Any) -> Any:
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter())
            return False, _metrics()

    def _metrics() -> Any:
        from pfl.metrics import Metrics

        return Metrics()

    def make(user: int) -> Any:
        rows = slice(user * work.samples, (user + 1) * work.samples)
        return Dataset([x[rows], y[rows]], user_id=str(user))

    data = ArtificialFederatedDataset(make, lambda: int(np.random.randint(work.clients)), lambda: work.samples)
    net = Net().to(device)
    model = PyTorchModel(net, local_optimizer_create=torch.optim.SGD, central_optimizer=torch.optim.SGD(net.parameters(), lr=1.0))
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=rounds + 2, evaluation_frequency=10**6, train_cohort_size=work.cohort, val_cohort_size=0
        ),
        backend=SimulatedBackend(training_data=data, val_data=None),
        model=model,
        model_train_params=NNTrainHyperParams(local_num_epochs=1, local_learning_rate=0.05, local_batch_size=work.batch),
        model_eval_params=None,
        callbacks=[Clock()],
    )
    steps = [later - earlier for earlier, later in itertools.pairwise(times[1:])]
    print(json.dumps(statistics.median(steps)))


if __name__ == "__main__":
    _main(int(sys.argv[1]))
