"""`localqwen convert`."""
