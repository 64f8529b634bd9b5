"""MLX folders: names, packings and files, the same as mlx-lm writes. Only `arrays` imports MLX, when it computes."""
