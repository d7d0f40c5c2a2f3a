"""`pack`: sources to a layer, with a cache."""
