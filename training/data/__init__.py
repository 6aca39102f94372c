"""Tokenized examples and their log-probs."""
