"""The clock that starts nights."""
