"""Rehearsals, which show with a scripted rater that feedback changes behaviour."""
