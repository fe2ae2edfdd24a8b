"""Measuring: scores, exits, time."""
