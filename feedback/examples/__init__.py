"""Training examples made from feedback."""
