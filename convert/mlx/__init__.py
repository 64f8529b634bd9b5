"""MLX folders: names, packings and files, as mlx-lm writes them. MLX itself is imported when numbers are computed."""
