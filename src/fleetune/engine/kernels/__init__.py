"""Loops over memory that torch has no single operation for, compiled on the user's machine by Numba.

Each has an equal in plain torch, which runs on a GPU and in float64; tests hold the two together.
"""
