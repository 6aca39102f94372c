"""Examples as token ids, and their log-probs."""
