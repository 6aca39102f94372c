"""Import and export formats: rows in, rows out, with a counted reason for every row left out.

Each format is one file in the folder of its family, and `registry` finds them. `base` defines what a format declares,
`record` the helpers for rows, `files` the file types; `load` imports into the ledger, and `export` exports from it.
"""
