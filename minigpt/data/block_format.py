"""What block files mean: said once, for packing.py that writes and data_utils.py that reads.

A module of its own because the processes that write blocks do without torch, which data_utils.py
needs.
"""

FORMAT = 1  # version of the block files; a change of their meaning changes this number
TARGET = 1  # mask bit 0: this token is a target to learn
IS_START = 2  # mask bit 1: this token starts a segment; attention and positions restart there
