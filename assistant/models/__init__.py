"""A base model and an adapter as they lie on the disk, and how text becomes token ids."""
