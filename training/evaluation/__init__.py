"""Whether what was trained is good enough."""
