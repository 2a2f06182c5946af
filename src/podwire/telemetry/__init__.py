"""How a component tells what it did: progress through the API's changes, numbers for Prometheus."""
