"""Formats whose rows are a thumb on one reply."""
