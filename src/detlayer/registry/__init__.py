"""Registries: the distribution API, tokens, retries, uploads. Never plans, never what an image means."""

from __future__ import annotations

from detlayer.registry.client import Registries, Repository
from detlayer.registry.connections import Network
from detlayer.registry.transport import Transport

__all__ = ["Network", "Registries", "Repository", "Transport"]
