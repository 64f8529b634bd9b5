"""Importance matrices: measured on a text, written and read."""
