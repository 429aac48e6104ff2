"""Transitions, and the replay that keeps and draws them.

Imports nothing else of ``engine``.
"""
