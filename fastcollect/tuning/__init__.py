"""The search for n, N and M, its report, and the profiles that it saves.

Imports every other room; none imports it.
"""
