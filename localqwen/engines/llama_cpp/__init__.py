"""The llama.cpp engine: GGUF files on every machine."""
