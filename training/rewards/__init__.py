"""Sources of reward: each scores the replies that a policy samples, and is declared in one file."""
