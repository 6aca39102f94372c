"""A chat with the engine, recorded in full."""
