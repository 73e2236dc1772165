"""For tools that look for setup.py; the metadata is in setup.cfg."""

from setuptools import setup

setup()
