"""Shared memory: segments, rings of blocks, the board of weights, tokens, histograms.

Where arrays lie and who may touch which part of them, and no process. Imports ``support`` and the specs of
``envs``.
"""
