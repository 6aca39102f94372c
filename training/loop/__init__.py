"""The training loop that all methods share: steps, early stopping, checkpoints, several processes."""
