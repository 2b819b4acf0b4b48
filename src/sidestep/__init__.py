"""Sidestep: novel views of a scene from one photo, by DDIM inversion."""
