"""The texts of the skills: tables of phrasings, one file per theme.

A template's text can be part of a problem's key, and the key decides what is held out: changing a
template, or a slot's name in it, changes the split between training and evaluation.
"""
