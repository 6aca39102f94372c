"""The same engine contract kept by a vLLM server."""
