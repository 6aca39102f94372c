"""The HTTP API as OpenAI's clients know it."""
