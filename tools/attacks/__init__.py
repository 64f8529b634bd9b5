"""The parts of tools/attack.py: hostile models, questions, bytes and signals, and clients that must not notice."""
