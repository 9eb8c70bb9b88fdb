"""Processes of the server: workers that answer, and a supervisor that keeps them at it."""
