"""The model that answers."""
