"""Sparse networks: masks, pruning, saliency, compact networks, operation counts.

Imports nothing else of ``engine``; saliency names the types of ``algorithms`` and ``data``.
"""
