"""What goes over the broker: queues, admission, token streams and, without a server, the broker itself."""
