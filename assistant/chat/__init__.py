"""A chat with the engine, and everything of it written down."""
