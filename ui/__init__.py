"""The pages, the HTTP API, the schedule."""
