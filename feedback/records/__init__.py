"""Rows that are not feedback: adapters, nights, settings, cached log-probs."""
