"""Calibration under the name users import it by; the code is in `evaluation.calibration`."""

from .evaluation.calibration import (
    Calibrated,
    agreement,
    all_points,
    calibrate,
    conformal,
    ladder,
    policy_for,
)

__all__ = ["Calibrated", "agreement", "all_points", "calibrate", "conformal", "ladder", "policy_for"]
