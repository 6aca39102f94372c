"""What people said in the formats of others: rows in, rows out, with a counted reason for every row left out.

`record` has what a row can say, `pairs` and `singles` one pair of functions for each format, `files` how rows lie in
files, `load` and `export` the ways to and from the ledger.
"""
