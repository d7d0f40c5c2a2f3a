"""Contract suite of registry client, planner, push and pull: runs against a strict registry and real ones."""
