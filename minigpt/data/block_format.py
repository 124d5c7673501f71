"""The format of block files, for packing.py (the writer) and data_utils.py (the reader).

A module of its own, because the processes that write blocks do not load torch, as data_utils.py
does.
"""

FORMAT = 1  # version of the block files; a change of their meaning changes this number
TARGET = 1  # mask bit 0: this token is a target to learn
IS_START = 2  # mask bit 1: this token starts a segment; attention and positions restart there
PREFERENCES = {"kind": "preferences"}  # in meta.json: two blocks are a preference (stage "dpo")
PROMPTS = {
    "kind": "prompts"
}  # a block is a prompt, its record a line of train.jsonl (stage "grpo")
STAGES = {"preferences": "dpo", "prompts": "grpo"}  # of train.py: kind → the one that reads it
