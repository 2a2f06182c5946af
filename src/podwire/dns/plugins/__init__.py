"""One module per plugin: a handler that takes a request and asks the next one in the chain."""
