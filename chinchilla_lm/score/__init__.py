"""Calibration passes: what dropping a link costs in quality, by true removal, and what it saves in time, by the
clock."""
