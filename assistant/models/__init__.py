"""Base models and adapters on disk, and the conversion of text to token ids."""
