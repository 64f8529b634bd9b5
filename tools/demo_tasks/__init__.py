"""The tasks of the demo model: each generates questions with their thinking and their answers from a seed."""
