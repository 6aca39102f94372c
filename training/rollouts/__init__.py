"""Replies of the policy, sampled for training."""
