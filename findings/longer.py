"""A reward for length alone: the longer an answer, the better, up to six characters."""

MOST = 6


def reward(prompt, answer, record):
    return min(len(answer), MOST) / MOST
