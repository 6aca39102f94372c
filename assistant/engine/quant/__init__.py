"""Number formats of weights: read, rounded, multiplied, and chosen by measurement."""
