"""The SQLite file: opened, migrated, written durably. It knows no table's meaning."""
