"""The tasks of the demo model: each makes questions with their thinking and their answers, from a seed."""
