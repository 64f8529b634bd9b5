"""GGUF files: names, keys, types and bytes, the same as llama.cpp's own tools write."""
