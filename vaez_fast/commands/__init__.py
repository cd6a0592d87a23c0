"""The commands of `vaez-fast`: each module adds its options to a parser and runs them.

DESCRIPTION and EXAMPLE frame its help; LIGHTER says what to do where memory ran out.
"""
