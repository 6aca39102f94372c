"""The SQLite file: opening, migrations and durable writes. No code here depends on what a table means."""
