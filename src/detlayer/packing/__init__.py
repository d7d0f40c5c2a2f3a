"""`pack`: sources to a layer, with what the cache knows."""
