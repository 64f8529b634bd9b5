"""What a conversion leaves on disk: files and folders written whole or not at all, digests, manifests."""
