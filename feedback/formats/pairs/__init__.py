"""Formats whose rows compare replies."""
