"""What a conversion writes: files and folders, whole or not at all; digests, manifests, forecasts."""
