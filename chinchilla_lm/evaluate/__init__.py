"""Metrics with intervals, the paired certificate, speed, and the report."""
