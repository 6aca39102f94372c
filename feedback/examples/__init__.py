"""Feedback as training data."""
