"""Columns → tensors: scaling, one-hot, hashed n-grams. Vectorised; the same code serves the gateway and training."""
