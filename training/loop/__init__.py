"""What every method's training shares: steps, early stopping, several processes."""
