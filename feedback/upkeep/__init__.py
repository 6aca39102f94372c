"""What keeps a ledger in order: privacy, backup, health, and when nights are due."""
