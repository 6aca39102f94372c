"""Training: from people's feedback to new adapters."""
