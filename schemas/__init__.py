"""The contracts: every byte in motion or at rest. No other room is imported from here."""
