"""OCI digests, descriptors, references, documents, platforms, and image assembly. Pure functions and values."""
