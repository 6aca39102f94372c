"""Formats whose rows are a thumb for one reply."""
