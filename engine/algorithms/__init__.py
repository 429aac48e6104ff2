"""Learning algorithms, one file each, behind the protocol of ``base``.

Imports ``data``, ``sparse`` and the modules at the top of ``engine``.
"""
