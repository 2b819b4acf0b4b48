"""Captured scenes on disk, read into `Scene`s."""
