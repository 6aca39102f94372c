"""The training methods."""
