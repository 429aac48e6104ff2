"""Sparse networks: masks, pruning, compact networks, operation counts.

Imports nothing else of ``engine``.
"""
