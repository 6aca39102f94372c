"""What an operator does, with its audit row."""
