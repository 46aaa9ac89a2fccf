"""Imported by ``rundramatiq``, which looks for this module in every app with actors.

There is nothing to do here: the actors are declared when Django is ready.
"""
