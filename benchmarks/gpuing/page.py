"""The page."""

def page(lines):
    return ""
