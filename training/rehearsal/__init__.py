"""A rehearsal: see on the spot that feedback changes behaviour."""
