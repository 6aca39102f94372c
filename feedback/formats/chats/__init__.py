"""Formats whose rows are demonstrations: conversations as they should have been."""
