"""Import and export formats: rows in, rows out, with a counted reason for every row left out.

Each format is one file in the folder of its family (`chats`, `pairs`, `ratings`, `thumbs`), and `registry` finds them;
`columns` makes one of declared columns. `base` defines what a format declares, `record` and `turns` help to read rows,
`sources` reads files, and `files` writes them; `load` imports into the ledger, and `export` exports from it.
"""
