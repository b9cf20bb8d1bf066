"""Audio files, manifests and datasets."""
