"""What can be run, where it lies, and whether it fits. Knows files and names, no engine."""
