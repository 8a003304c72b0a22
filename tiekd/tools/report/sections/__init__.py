"""The sections of a report: one function per section, from the report's content to HTML.

Each function returns a list of HTML elements; it is empty if the section is left out.
"""
