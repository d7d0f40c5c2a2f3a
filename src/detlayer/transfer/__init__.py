"""Plans, pushes, pulls and copies between images on disk and registries."""
