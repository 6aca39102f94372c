"""The engine contract, kept by a vLLM server."""
