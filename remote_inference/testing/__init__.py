"""Fakes that the project's own tests use, public so that users can test their code with them too."""
