"""Measures models: speed, waiting times, endurance, quality and tuning. Knows no terminal."""
