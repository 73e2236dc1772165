"""The limits of a key: who holds which rights, who wants more, and what a request has to wait for. No I/O."""
