"""OCI layouts, OCI and Docker archives, and container engines: read and written."""
