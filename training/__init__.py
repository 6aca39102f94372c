"""Feedback in, adapters out."""
