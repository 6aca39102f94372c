"""Logins, sessions and permissions."""
