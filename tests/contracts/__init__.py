"""What the registry client, the planner, push and pull are held against: a strict registry, and real ones."""
