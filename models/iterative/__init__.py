"""Pruning in rounds: train, prune, go back or go on, train again."""
