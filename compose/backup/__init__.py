"""Backup and restore of a deployment: warehouse, artifact store, control topics (`docs/operations.md`)."""
