"""Batched inference with many LoRA adapters at once."""
