"""Raters: agreement, reliability weights, the next question to ask, and the leaderboard."""
