"""What a conversion reads: checkpoint folders, however their weights are stored, and LoRA adapters."""
