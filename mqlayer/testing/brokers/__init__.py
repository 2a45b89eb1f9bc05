"""Real brokers as child processes: one module a broker, and the catalogue of them all."""
