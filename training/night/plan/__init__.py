"""What a night will do: its method and why, where it begins, its examples, and about how long it takes."""
