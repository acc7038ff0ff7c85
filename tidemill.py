"""The public client (`import tidemill`)."""
