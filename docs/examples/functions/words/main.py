"""Counts words: `curl -d 'one two two' ...` is answered {"one": 1, "two": 2}."""

from counting import count


def http(request):
    return count(request.text)
