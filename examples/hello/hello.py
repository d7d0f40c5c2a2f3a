"""Say hello from a container layer."""

print("hello from a layer that has the same bytes everywhere")
