"""Formats whose rows say more of a reply: all of it, critiques, labels."""
