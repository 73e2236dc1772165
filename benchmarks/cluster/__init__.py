"""Many workers and one limit: how much of it they use, how often the provider refuses them, and what that costs."""
