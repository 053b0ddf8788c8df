"""How good a set of preferences is: one module for each family of numbers, all from arrays with a row for each pair.

A module measures (arrays in, a frozen record of estimates out) and says what it found (`findings`, held against limits
that stand as constants at its top). Nothing here reads a file, and nothing deletes a row.
"""
