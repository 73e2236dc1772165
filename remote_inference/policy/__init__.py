"""Decisions only: what an error means, whether to try again or to ask at all, and whom to ask instead.

Its modules are imported by name: a web process takes `routing` and must not load pybreaker with it.
"""
