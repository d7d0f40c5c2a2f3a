"""Checks of layers and contents; each finding has the name of its trap. Pure."""
