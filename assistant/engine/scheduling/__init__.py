"""Whose turn it is: places, memory, and what a step reads."""
