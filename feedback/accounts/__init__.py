"""People: accounts, sessions, consent, and answers to repeated requests."""
