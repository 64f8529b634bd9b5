"""The MLX engine: checkpoint folders on Apple Silicon."""
