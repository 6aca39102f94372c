"""Rollouts: replies of the policy, sampled for training."""
