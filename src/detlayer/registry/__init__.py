"""Registry client: distribution API, tokens, retries, uploads. Does not plan or interpret images."""

from __future__ import annotations

from detlayer.registry.client import Registries, Repository
from detlayer.registry.connections import Network
from detlayer.registry.transport import Transport

__all__ = ["Network", "Registries", "Repository", "Transport"]
