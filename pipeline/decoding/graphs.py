"""Decoding passes as CUDA graphs: launched as one, so that a GPU does not wait for the host.

A pass of a model of 32 layers launches more than a thousand operators. Captured once, it is
launched at once. A graph repeats exactly what was launched, on the same memory: it holds a pass of
one shape, which may only read and write tensors that stay where they are.

This has not been run on a GPU yet.
"""

from __future__ import annotations

import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Hashable
from statistics import median
from typing import Any

import torch

# How many passes of a shape are timed launched one by one, and then as a graph.
_TIMED = 3


class Graphs:
    """Runs passes: on CUDA as graphs, where capturing works and is faster; elsewhere as they are.

    Args:
        device: where they run.
    """

    works = True  # until a capture fails in this process

    def __init__(self, device: torch.device):
        self._on_cuda = device.type == "cuda"
        # Passes follow one another and leave nothing behind, so they can share memory.
        self._pool = torch.cuda.graph_pool_handle() if self._on_cuda else None
        self._graphs: dict[Hashable, Any] = {}
        self._seconds: dict[Hashable, list[float]] = defaultdict(list)

    def run(self, shape: Hashable, work: Callable[[], None]) -> None:
        """Run one pass; `work` of the same shape always launches the same."""
        if not (self._on_cuda and Graphs.works):
            return work()
        seconds = self._seconds[shape]
        if len(seconds) < _TIMED:
            return seconds.append(_timed(lambda: _aside(work)))
        if len(seconds) == _TIMED and not self._capture(shape, work):
            return work()
        graph = self._graphs[shape]
        if len(seconds) < 2 * _TIMED:
            return seconds.append(_timed(graph.replay))
        faster = median(seconds[_TIMED:]) < median(seconds[:_TIMED])
        return graph.replay() if faster else work()

    def _capture(self, shape: Hashable, work: Callable[[], None]) -> bool:
        """Capture a pass, which does not run it; false, and never again, where that fails."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                work()
        except RuntimeError as error:
            Graphs.works = False
            warnings.warn(f"passes are not captured as CUDA graphs: {error}", stacklevel=2)
            return False
        self._graphs[shape] = graph
        return True


def _aside(work: Callable[[], None]) -> None:
    """Run on a stream of its own, as CUDA asks of what is going to be captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)


def _timed(work: Callable[[], None]) -> float:
    """Seconds that a pass takes."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - began
