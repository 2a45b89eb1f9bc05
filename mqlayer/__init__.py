"""One Producer/Consumer API over many message brokers, chosen by URL."""
