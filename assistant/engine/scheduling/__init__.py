"""Scheduling between people: places, memory, and what a step reads."""
