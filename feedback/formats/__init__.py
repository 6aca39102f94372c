"""What people said in the formats of others: rows in, rows out, with a counted reason for every row left out.

Each format is one file in the folder of its family, and `registry` finds them. `base` has what they declare, `record`
what a row can say, `files` how rows lie in files, `load` and `export` the ways to and from the ledger.
"""
