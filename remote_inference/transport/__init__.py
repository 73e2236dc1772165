"""The wire: HTTP, event streams and sessions."""
