"""The ``mqlayer`` command, with the extra ``cli``: it reads arguments and prints; what it does is done elsewhere.

The only place that imports typer and rich, and the only one that imports ``mqlayer.testing``, on use.
"""
