"""Policies for a start, in NumPy, and the protocol for one's own.

Imports ``memory``, ``support`` and the specs of ``envs``.
"""
