"""Digests, descriptors, references, documents and platforms of OCI, and images assembled from them. Pure."""
