"""Formats whose rows are a conversation as it should have been."""
