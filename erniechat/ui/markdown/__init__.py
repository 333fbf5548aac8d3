"""Markdown on a terminal: blocks are finished one by one while the text is still coming."""
