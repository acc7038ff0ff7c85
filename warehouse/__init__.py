"""ClickHouse: the client, the migration runner, queries by name."""
