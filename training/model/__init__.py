"""The model that is trained: backbone, adapters, packing, attention, reward heads."""
