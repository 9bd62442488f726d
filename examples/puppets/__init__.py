"""Makers of talking faces with known truth, to learn from and to measure by.

`examples/synth.py` writes clips of them.
"""
