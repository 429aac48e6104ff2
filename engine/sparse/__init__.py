"""Sparse networks: masks, pruning, saliency, compact networks, operation counts.

Imports the modules at the top of ``engine``.
"""
