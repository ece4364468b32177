from collections import Counter


def count(text):
    return dict(sorted(Counter(text.split()).items()))
