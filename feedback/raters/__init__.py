"""How far raters agree, what each weighs, what to ask next, and the leaderboard."""
