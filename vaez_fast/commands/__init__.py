"""The commands of `vaez-fast`: each module adds its options to a parser and runs them.

HELP is its line in the list of commands, DESCRIPTION and EXAMPLE frame its own help.
"""
