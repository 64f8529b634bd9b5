"""Measuring models: how good a conversion is. Knows engines, not conversations."""
