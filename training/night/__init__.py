"""A night, from what people said to an announced adapter. `python -m training.night`."""
