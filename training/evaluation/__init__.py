"""Evaluation of trained adapters and reward models."""
