"""`localqwen bench`."""
