"""Pictures of partitions: one form for few clients, one for many classes, one for many clients."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from paceline.core.errors import DataError
from paceline.data import partition_task
from paceline.data.plots import plot_partition
from paceline.tasks import blobs


@pytest.mark.parametrize(("classes", "clients"), [(4, 12), (30, 12), (4, 90), (4, 1)])
def test_a_picture_is_drawn(tmp_path, classes, clients):
    task = blobs(samples=600, classes=classes)
    path = plot_partition(tmp_path / "new" / "split.png", partition_task(task, "dirichlet:0.3", clients), task)
    with Image.open(path) as picture:
        shown = np.asarray(picture.convert("L"))
    assert min(shown.shape) > 400
    assert 0.01 < float((shown < 200).mean()) < 0.9


def test_clients_without_samples_can_be_drawn(tmp_path):
    task = blobs(samples=20)
    for clients in (30, 100):
        split = partition_task(task, "iid", clients, allow_empty=True)
        assert plot_partition(tmp_path / f"{clients}.svg", split, task).stat().st_size > 1000


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    task = blobs(samples=40)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file"):
        plot_partition(tmp_path / "file" / "a.png", partition_task(task, "iid", 4), task)
    with pytest.raises(DataError, match="cannot be written"):
        plot_partition(tmp_path / "a.nonsense", partition_task(task, "iid", 4), task)
