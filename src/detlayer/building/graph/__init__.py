"""Steps with declared inputs and outputs, run in parallel, each only when it has to. Knows of no image, clock or disk.

A step's key is the fingerprint of its version and all its inputs, among them the results of the steps that it needs. A
trace under that key holds the results: with one that is intact a step is not run, but replayed. So a step that runs and
brings the same results as before costs those behind it nothing (early cut-off). Failures leave no trace. Why a step
runs is data: which input changed, from what to what.
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
