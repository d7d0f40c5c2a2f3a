"""What is wrong with a layer or a content, by name. Pure."""
