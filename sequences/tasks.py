"""Found by ``rundramatiq``, which wants a module of every app that has actors.

There is nothing to do here: the actors are bound when Django is ready.
"""
