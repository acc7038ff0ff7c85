"""Decisions: when to retrain, and which version answers. Pure functions decide; `service.py` moves the bytes."""
