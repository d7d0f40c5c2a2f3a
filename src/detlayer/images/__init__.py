"""Read and write OCI layouts, OCI and Docker archives, and load images into container engines."""
