"""Plan, push, pull and copy images between disk and registries."""
