"""Upkeep of the ledger: privacy, backup, health checks, and the schedule of nights."""
