"""Measuring: recordings of what exits emit, replay, frontiers, calibration, costs and time."""
