"""Recorded local loops: the steps of a chunk become one CUDA graph, which is replayed for later chunks with their data.

A step of a small model takes a GPU less time than Python needs to launch its kernels. A loop of fixed shapes (`FixedStack`)
always launches the same ones, so they are recorded once: with the second chunk of a shape. The third one also trains step by
step; if the results differ, the loop is not replayed. On a CPU the same static tensors are used without a recording.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from paceline.core.precision import is_float32
from paceline.core.training import Job, descend
from paceline.engines.stacking.compiled import CompiledGradients
from paceline.engines.stacking.fixed import FixedStack, shape_of
from paceline.engines.stacking.hooks import Unstackable
from paceline.engines.stacking.kernels import Kernels
from paceline.engines.stacking.stack import Stack

__all__ = ["Recording", "Replays"]

RECORDED = ("cuda",)
"""Types of devices whose kernels can be recorded."""

_MOST, _COMPILED = 8, 2
"""Recordings of one kind of job, and those that are compiled; a kind that needs more changes from round to round."""

_ALL = 16
"""Recordings of a worker at one time: sub-models may be new in every round, and a recording keeps the memory of its loop."""

_NEAR, _ROUGH = 2e-3, 5e-2
"""Largest relative difference between the changes of a replay and those of plain steps, for all clients together: in float32,
and where products round their factors to TF32 or bfloat16."""


class Recording:
    """One recorded loop.

    Args:
        stack: a stack of the recorded shape.
        kernels: whether it becomes a CUDA graph where there is a GPU, and whether its gradients are compiled.
    """

    def __init__(self, stack: FixedStack, kernels: Kernels) -> None:
        self.stack, self.unchecked = stack, 1 + kernels.compile
        stack.own()
        if kernels.compile and stack.job.hooks.direction is None:  # such a hook computes gradients itself
            CompiledGradients(stack).install()
            stack.loop()  # compiles what each step needs
        self.graph = self.record() if kernels.graph and stack.at.vector.device.type in RECORDED else None

    def record(self) -> Any:
        """Return the CUDA graph of the loop."""
        device, cached = self.stack.at.vector.device, torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)  # a recorded loop must not read weights that were cast before it
        try:
            with torch.cuda.device(device):
                side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):  # libraries allocate and choose algorithms before the recording
                    self.stack.loop()
                    self.stack.loop()
                torch.cuda.current_stream().wait_stream(side)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    self.stack.loop()
        finally:
            torch.set_autocast_cache_enabled(cached)
        return graph

    def run(self, other: FixedStack) -> None:
        """Train another stack of the same shape: its results are written into it."""
        self.stack.load(other)
        if self.graph is None:
            self.stack.loop()
        else:
            self.graph.replay()
        other.at.vector.copy_(self.stack.at.vector)
        other.totals.copy_(self.stack.totals)

    def agrees(self, other: FixedStack) -> bool:
        """Train another stack; return whether a replay gives what single steps do. If so, the results are those of the replay."""
        other.loop()
        steps, totals = other.at.vector.clone(), other.totals.clone()
        self.run(other)
        near = _NEAR if other.job.model.mixed is None and is_float32() else _ROUGH
        change, difference = (steps - other.starts).norm(), (other.at.vector - steps).norm()
        same = torch.allclose(other.totals, totals, rtol=near, atol=1e-5, equal_nan=True)
        self.unchecked -= 1
        if same and (bool(difference <= near * change + 1e-6) or not bool(change.isfinite())):
            return True
        other.at.vector.copy_(steps)
        other.totals.copy_(totals)
        return False


class Replays:
    """Recorded loops of a worker, by shape.

    Args:
        kernels: whether loops are recorded, and compiled.
    """

    def __init__(self, kernels: Kernels) -> None:
        self.kernels = kernels
        self.notes: dict[str, str] = {}
        """Kinds of jobs whose loops are not recorded, with the reasons."""
        self._seen: dict[Any, set[Any]] = {}
        self._recordings: dict[Any, Recording] = {}
        self._refused: set[Any] = set()
        self._uncompiled: set[Any] = set()

    def train(self, kind: Any, name: str, jobs: Sequence[Job], unscored: bool = False) -> Stack:
        """Train a chunk of jobs; return the stack afterwards.

        Args:
            kind: key of jobs that may be stacked.
            name: of the hook or model, for the notes.
            jobs: sorted by steps, longest first.
            unscored: whether some targets do not count for the cross-entropy.
        """
        if kind not in self._refused and (self.kernels.graph or self.kernels.compile):
            try:
                fixed = FixedStack(jobs, unscored)
                self._train(kind, name, (kind, shape_of(fixed)), fixed)
                return fixed
            except Unstackable as reason:
                self._refuse(kind, name, str(reason))
        plain = Stack(jobs, unscored)
        descend(plain)
        return plain

    def _train(self, kind: Any, name: str, shape: Any, stack: FixedStack) -> None:
        recording = self._recordings.get(shape)
        if recording is None:
            seen, early = self._seen.setdefault(kind, set()), self.kernels.compile
            new = shape not in seen
            if new and len(seen) == (_COMPILED if early else _MOST):
                self._refuse(kind, name, f"its shapes or numbers change from round to round: {len(seen)} kinds so far")
            seen.add(shape)
            # compiled steps round differently: no chunk may depend on how many were trained before it in this process
            if kind not in self._refused and (early or not new):
                recording = self._record(kind, name, shape, stack)
            if recording is None or not early:
                stack.loop()
                return
        if not recording.unchecked:
            recording.run(stack)
        elif not recording.agrees(stack):
            self._refuse(kind, name, "a replay gave other values than single steps")

    def _record(self, kind: Any, name: str, shape: Any, stack: FixedStack) -> Recording | None:
        """Record a loop; without compilation if that fails, and not at all if that fails too."""
        kernels = replace(self.kernels, compile=self.kernels.compile and kind not in self._uncompiled)
        while True:
            try:
                recording = self._recordings[shape] = Recording(FixedStack(stack.jobs, stack.unscored), kernels)
                if len(self._recordings) > _ALL:
                    del self._recordings[next(iter(self._recordings))]
                return recording
            except Unstackable:
                raise
            except Exception as error:  # whatever cannot be recorded trains step by step
                reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            if not kernels.compile:
                self._refuse(kind, name, reason)
                return None
            kernels = replace(kernels, compile=False)
            self._uncompiled.add(kind)
            self.notes.setdefault(name, f"train without torch.compile: {reason}")

    def _refuse(self, kind: Any, name: str, reason: str) -> None:
        self._refused.add(kind)
        self._recordings = {shape: kept for shape, kept in self._recordings.items() if shape[0] != kind}
        self.notes.setdefault(name, f"train step by step, without a recorded loop: {reason}")
