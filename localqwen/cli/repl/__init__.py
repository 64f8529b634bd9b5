"""The conversation on a terminal: the loop, its commands, and the keyboard."""
