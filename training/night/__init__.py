"""A night: from people's feedback to an announced adapter (`python -m training.night`)."""
