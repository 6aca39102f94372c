"""What people say of replies: votes, comparisons, rankings, corrections, critiques, labels, signals."""
