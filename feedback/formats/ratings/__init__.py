"""Formats for critiques, for labels, and for everything in the ledger."""
