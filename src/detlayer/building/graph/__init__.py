"""Run steps with declared inputs and outputs in parallel, if needed. Independent of images, clock and disk.

A step's key is the fingerprint of its version and all its inputs, including the results of the steps that it needs. A
trace stores the results under that key. If it exists and is intact, the step is a cache hit and does not run. If a step
runs with the same results as before, later steps are hits (early cut-off). Failures are not stored. The reasons why a
step runs are data: which input changed, with both values.
"""

from __future__ import annotations

from detlayer.building.graph.execution import execute
from detlayer.building.graph.outcome import Done, Event, Monitor, Outcome, State
from detlayer.building.graph.step import Call, Reason, Result, Step, Stopped, Texts, arrange, closure
from detlayer.building.graph.traces import Forgetful, Traces, key_of

__all__ = [
    "Call",
    "Done",
    "Event",
    "Forgetful",
    "Monitor",
    "Outcome",
    "Reason",
    "Result",
    "State",
    "Step",
    "Stopped",
    "Texts",
    "Traces",
    "arrange",
    "closure",
    "execute",
    "key_of",
]
