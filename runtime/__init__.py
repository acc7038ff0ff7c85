"""What every service needs and none owns: settings, Kafka, the artifact store, health, telemetry, the clock."""
