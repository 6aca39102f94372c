"""Conversations and replies."""
