"""Registries: the distribution API, tokens, retries, uploads. Never plans, never what an image means."""
