"""Choosing sizes and fitting weights: what several passes share."""
