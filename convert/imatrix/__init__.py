"""Importance matrices: measured on a text, and read from a file."""
