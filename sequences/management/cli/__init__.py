"""``manage.py sequences``: what it can do, a class for each word that may follow it."""
