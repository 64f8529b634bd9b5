"""GGUF files: names, keys, types and bytes, as llama.cpp's own tools write them."""
