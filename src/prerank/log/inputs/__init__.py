"""Stored values to batches: fitted transforms, assembly, evidence; shared by reader and server."""
