"""Broken backends that the suite must catch, each by the criterion named for it, while criteria it is innocent of stay green.

``table.py`` lists them, ``sessions.py`` breaks sessions, ``columns.py`` makes columns of them, ``mutation.py`` runs them.
A suite that lets one through proves less than it says.
"""
