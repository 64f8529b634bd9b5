"""What is converted: checkpoint folders however their weights are stored, and adapters."""
