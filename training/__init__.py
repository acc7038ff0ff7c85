"""Retrain order in, candidate out: snapshot, fit, evaluate, gate, publish."""
