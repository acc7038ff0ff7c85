"""The real ClickHouse engine (chdb, in this process, data on disk) behind ClickHouse's HTTP interface.

``python -m compose.embedded.clickhouse --data DIR --port 8123`` serves clickhouse-connect, curl and
whatever else speaks ClickHouse over HTTP. ``engine`` runs statements, ``access`` decides who may run
which, ``statements`` finds the clauses an HTTP server has to touch, ``bodies`` spools what is uploaded, ``sessions`` keeps HTTP sessions,
``http`` is the protocol.
"""
